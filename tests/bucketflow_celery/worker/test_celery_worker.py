"""The Celery worker: how tasks end that fail without running, and what happens where the result backend fails."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.backends.base import DisabledBackend
from celery_requests import app_in_memory, received
from waiting import until

from bucketflow_celery import Limit, ThrottleTimeout
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.worker.celery_worker import CeleryWorker
from bucketflow_celery.worker.failures import FailureService


def work():
    """Never runs."""


class ExpiredWhileTheResultBackendIsUnavailable:
    id = "42"

    def revoked(self):
        raise OSError("the result backend is unavailable")


class Copies(Republisher):
    """Records the copies of deferred messages."""

    def __init__(self, world):
        super().__init__(None, delayed=False)
        self._world = world

    def publish(self, _message, _queue, countdown, ticket, _lead=0.0):
        if not self._world.publishes:
            raise OSError("away")
        self._world.published.append((countdown, ticket))


class World:
    """A worker without a connection, and what it does to messages."""

    def __init__(self, **options):
        self.callbacks, self.done, self.events = [], [], []
        self.published, self.timers = [], []
        self.publishes = True
        self.failures = FailureService(self.callbacks.append)
        self.app = app_in_memory()
        self.work = self.app.task(name="work", shared=False, **options)(work)
        slots = SimpleNamespace(free=None, when_free=None)
        window = SimpleNamespace(widen=None, narrow=None, can_hold_many=True, hold_limit=500)
        waker = SimpleNamespace(timer=SimpleNamespace(call_after=self.call_after), call_soon=None)
        queues = SimpleNamespace(get=lambda _name: None)
        consumer = SimpleNamespace(app=SimpleNamespace(amqp=SimpleNamespace(queues=queues)))
        self.worker = CeleryWorker(consumer, slots, window, Copies(self), waker, self.failures)

    def call_after(self, seconds, callback):
        self.timers.append((seconds, callback))

    def task(self, *, is_parked=False):
        request = received(self.app, self.work.s())
        request.message.ack_log_error = lambda *_: self.done.append("acknowledged")
        request.message.reject_log_error = lambda *_, requeue: self.done.append(f"rejected, requeue={requeue}")
        request._on_ack = lambda *_: self.done.append("acknowledged")
        request._on_reject = lambda _logger, _errors, requeue: self.done.append(f"rejected, requeue={requeue}")
        request.eventer = SimpleNamespace(enabled=True, send=lambda kind, **_: self.events.append(kind))
        request.is_parked = is_parked
        return PendingTask(request, "q", 0.0)

    def run_loop(self):
        until(lambda: self.callbacks)
        while self.callbacks:
            self.callbacks.pop(0)()


def test_a_task_that_expires_while_its_result_cannot_be_stored_does_not_run_and_raises_nothing(caplog):
    assert World().worker.is_revoked_or_expired(PendingTask(ExpiredWhileTheResultBackendIsUnavailable(), "q", 0.0))
    assert "end of task cannot be stored: id=42" in caplog.text


ENDS = {
    "early acknowledgement": ({}, False, "acknowledged"),
    "late acknowledgement": ({"acks_late": True}, False, "acknowledged"),
    "no acknowledgement of failures": (
        {"acks_late": True, "acks_on_failure_or_timeout": False},
        False,
        "rejected, requeue=False",
    ),
    "parked": ({}, True, "acknowledged"),
    "parked, no acknowledgement of failures": (
        {"acks_late": True, "acks_on_failure_or_timeout": False},
        True,
        "rejected, requeue=False",
    ),
}


@pytest.mark.parametrize(("options", "is_parked", "end"), ENDS.values(), ids=ENDS)
def test_the_message_of_a_failed_task_ends_as_after_a_failure_in_the_pool(options, is_parked, end):
    world = World(**options)
    world.worker.fail(world.task(is_parked=is_parked), ThrottleTimeout("tenant", 60.0, 1.0))
    assert world.done == []
    world.run_loop()
    assert world.done == [end]
    assert world.events[-1] == "task-failed"


def unavailable(*_, **__):
    raise OSError("away")


def world_without_result_backend():
    world = World()
    world.work.backend = SimpleNamespace(mark_as_failure=unavailable, remove_pending_result=lambda _result: None)
    return world


def test_a_parked_task_returns_to_its_lane_if_its_failure_cannot_be_stored():
    world = world_without_result_backend()
    world.worker.fail(world.task(is_parked=True), ThrottleTimeout("tenant", 60.0, 1.0))
    world.run_loop()
    assert world.done == ["rejected, requeue=True"]
    assert "task-failed" not in world.events


def test_a_task_is_deferred_if_its_failure_cannot_be_stored():
    world = world_without_result_backend()
    world.worker.fail(world.task(), ThrottleTimeout("tenant", 60.0, 1.0))
    world.run_loop()
    assert [countdown for countdown, _ticket in world.published] == [1.0]
    assert world.done == ["acknowledged"]
    assert "task-failed" not in world.events


def test_a_task_that_cannot_be_deferred_fails_again_after_the_pause():
    world = world_without_result_backend()
    world.publishes = False
    world.worker.fail(world.task(), ThrottleTimeout("tenant", 60.0, 1.0))
    world.run_loop()
    assert world.done == []
    [(seconds, fail_again)] = world.timers
    assert seconds == 1.0
    world.work.backend = DisabledBackend(world.app)
    until(lambda: world.failures.is_ready)
    fail_again()
    world.run_loop()
    assert world.done == ["acknowledged"]


@pytest.mark.parametrize(
    ("eventer", "sent"),
    [
        (lambda events: SimpleNamespace(enabled=True, groups=set(), buffer_group=(), send=events), 1),
        (lambda events: SimpleNamespace(enabled=False, groups=set(), buffer_group=(), send=events), 0),
        (lambda _events: None, 0),
    ],
)
def test_a_refusal_is_an_event_only_where_the_worker_sends_events(eventer, sent):
    world, events = World(), []
    task = world.task()
    task.request.eventer = eventer(lambda *_, **facts: events.append(facts["level"]))
    world.worker.record_refusal(task, Level("all", "all", Limit(1, 1)), 1.0)
    assert events == ["all"] * sent
