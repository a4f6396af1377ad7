"""Tasks that wait are counted by the level that they wait for, in hold queues and until their ETA."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery_requests import app_in_memory, received

from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.stats import Stats, no_waiting_tasks
from bucketflow_celery.worker.waiting_tasks import WaitingTasks

LIMITS = {"all": "1/s", "queues": {"*": "1/s"}, "tenants": {"*": "1/s"}, "tasks": {"*": "1/s"}}
SHARED = {level: {"*": {"rate": "1/s", "shared": True}} for level in ("tenants", "tasks")}
PATHS = [LimitTable.parse(limits, []).path("f:q/t:x", "f:acme/t:y", "t:work/f:z", None) for limits in (LIMITS, SHARED)]


class World:
    """A worker's hold queues, and the requests in its timer."""

    def __init__(self, held=(), deferred=()):
        self.hold_queues = HoldQueues()
        for level, reservations in held:
            key = level.key if level is not None else " other"
            self.hold_queues.of(key, level).add(PendingTask(None, "q", 0.0, reservations=dict(reservations)))
        consumer = SimpleNamespace(timer=SimpleNamespace(queue=[self._event(one) for one in deferred]))
        self.counts = WaitingTasks(consumer, SimpleNamespace(held=self.hold_queues.by_level)).by_level()

    @staticmethod
    def _event(request):
        args = () if request is None else (request,)
        return SimpleNamespace(entry=SimpleNamespace(args=args, canceled=False), eta=0.0)


@pytest.fixture
def requests():
    app = app_in_memory()

    @app.task(name="work", shared=False)
    def work():
        raise AssertionError

    def make(reservations):
        header = {} if reservations is None else {HEADER: Ticket(reservations, 1.0).write()}
        return received(app, work.s(), headers=header)

    return make


def counts(**levels):
    return {**no_waiting_tasks(), **levels}


@pytest.mark.parametrize("level", [level for path in PATHS for level in path], ids=lambda level: level.key)
def test_a_held_task_waits_for_the_level_of_its_queue(level):
    assert World([(level, {}), (level, {})]).counts == counts(**{level.name: 2})


@pytest.mark.parametrize(
    "level", [level for path in PATHS for level in path if not level.blocks_queue], ids=lambda level: level.key
)
def test_a_task_with_a_reservation_waits_for_its_level(requests, level):
    assert World([(None, {level.key: 1})]).counts == counts(**{level.name: 1})
    assert World(deferred=[requests({level.key: 1})]).counts == counts(**{level.name: 1})


def test_of_several_reservations_the_latest_binds(requests):
    tenant, task = PATHS[0][2:]
    deferred = [requests({tenant.key: 2, task.key: 1}), requests({tenant.key: 1, task.key: 2})]
    assert World(deferred=deferred).counts == counts(tenant=1, task=1)


def test_what_waits_for_no_level_is_counted_as_other_and_what_has_no_ticket_is_not_counted(requests):
    assert World([(None, {})], [requests({}), requests(None), None]).counts == counts(other=2)


def test_without_a_worker_no_task_waits():
    assert Stats().snapshot()["waiting_by_level"] == counts()
