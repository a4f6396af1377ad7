"""Monitors see a task as if it had not been refused: judged by Celery's own ``events.State``."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from celery import signals
from celery.contrib.testing.worker import start_worker
from celery.events.state import State
from celery_requests import app_in_memory, received
from processes import wait_until

from bucketflow_celery import Throttle
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.worker.events import REFUSED, send_refused


class Monitor:
    """A monitor of an app: its state, and the events that it has received."""

    def __init__(self, app):
        self.state, self.seen = State(), []
        self._connection = app.connection_for_read()
        receiver = app.events.Receiver(self._connection, handlers={"*": self._on_event})
        self._context = receiver.consumer_context(wakeup=False)
        self._listening, _, _ = self._context.__enter__()

    def _on_event(self, event):
        self.seen.append(event)
        self.state.event(event)

    def drain(self):
        try:
            while True:
                self._listening.drain_events(timeout=0.05)
        except TimeoutError:
            return self.seen

    def close(self):
        self._context.__exit__(None, None, None)
        self._connection.release()


@pytest.fixture
def app():
    app = app_in_memory(task_send_sent_event=False)

    @app.task(name="work", shared=False)
    def work(*_args):
        return None

    return app


@pytest.fixture
def monitor(app):
    monitor = Monitor(app)
    yield monitor
    monitor.close()


@pytest.fixture
def _logging_as_it_is():
    """Let no worker in this process configure the logging of all tests."""

    def ignore(**_):
        pass

    signals.setup_logging.connect(ignore)
    yield
    signals.setup_logging.disconnect(ignore)


LIVES = [
    ["task-received", REFUSED, "task-started", "task-succeeded"],
    ["task-received", "task-started", REFUSED, "task-succeeded"],
    ["task-received", REFUSED, "task-received", REFUSED, "task-started"],
    ["task-received", REFUSED, "task-revoked"],
    ["task-received", REFUSED, "task-failed"],
    ["task-received", "task-started", REFUSED, "task-retried"],
    ["task-received", "task-revoked", REFUSED],
]


@pytest.mark.parametrize("life", LIVES, ids=" ".join)
@pytest.mark.parametrize("buffer_group", [None, ["task"]])
def test_a_refusal_changes_no_state(app, monitor, life, buffer_group):
    with app.connection_for_write() as connection:
        dispatcher = app.events.Dispatcher(connection, hostname="w@x", buffer_group=buffer_group)
        for task_id, kinds in (("refused", life), ("other", [kind for kind in life if kind != REFUSED])):
            request = received(app, app.tasks["work"].s(), task_id=task_id)
            request.eventer = dispatcher
            for kind in kinds:
                if kind == REFUSED:
                    send_refused(request, level="tenant", key="q:q/t:acme", wait=1.0)
                else:
                    request.send_event(kind, name="work")
            dispatcher.flush()
    monitor.drain()
    tasks = monitor.state.tasks
    assert tasks["refused"].state == tasks["other"].state != "PENDING"
    refusals = [event for event in monitor.seen if event["type"] == REFUSED]
    assert [(event["uuid"], event["name"], event["level"]) for event in refusals] == [
        ("refused", "work", "tenant")
    ] * life.count(REFUSED)


GROUPS = {
    "all": (None, True),
    "only those of workers": (["worker"], False),
    "tasks, since enable_events": (["worker", "task"], True),
}


@pytest.mark.parametrize(("groups", "is_sent"), GROUPS.values(), ids=GROUPS)
def test_refusals_are_told_where_the_events_of_tasks_are(app, monitor, groups, is_sent):
    request = received(app, app.tasks["work"].s())
    with app.connection_for_write() as connection:
        request.eventer = dispatcher = app.events.Dispatcher(connection, hostname="w@x", groups=groups)
        send_refused(request, level="all", key="all", wait=1.0)
        dispatcher.groups.discard("task")  # as ``celery control disable_events`` does
        if groups:
            send_refused(request, level="all", key="all", wait=1.0)
    assert [event["type"] for event in monitor.drain()] == [REFUSED] * is_sent


@pytest.mark.usefixtures("_logging_as_it_is")
def test_a_task_is_received_once_over_its_returns(app, monitor):
    app.conf.broker_transport_options = {"polling_interval": 0.02}
    Throttle(app, store=MemoryStore(), limits={"tasks": {"*": {"rate": "5/s", "capacity": 1}}})
    work = app.tasks["work"]
    options = {"pool": "threads", "concurrency": 2, "task_events": True, "perform_ping_check": False}
    with start_worker(app, shutdown_timeout=10, **options):
        ids = [work.delay(number).id for number in range(4)]
        wait_until(lambda: Counter(event["type"] for event in monitor.drain())["task-succeeded"] == 4)
    received_ids = Counter(event["uuid"] for event in monitor.seen if event["type"] == "task-received")
    refused = {event["uuid"] for event in monitor.seen if event["type"] == REFUSED}
    assert received_ids == Counter(ids)
    assert refused == set(ids[1:])
    assert {monitor.state.tasks[task_id].state for task_id in ids} == {"SUCCESS"}
    stamps = [event["timestamp"] for event in monitor.seen if event["type"] == "task-started"]
    assert all(earlier <= later for earlier, later in pairwise(stamps))
