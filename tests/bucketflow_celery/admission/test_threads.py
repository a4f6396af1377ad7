"""Tasks may be submitted in one thread while rounds run in another: workers without an event loop do so."""

from __future__ import annotations

import sys
import threading

import pytest

from bucketflow.errors import StoreUnavailable
from bucketflow.testing import FakeClock
from bucketflow_celery import Limit
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.interfaces import NoParking, WaitLimits
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.calls import BlockingRunner, WorkerContext
from bucketflow_celery.store.memory_backlog import MemoryStoreCall
from bucketflow_celery.testing import MemoryStore


class Worker:
    """A worker with *slots* free slots, which records what leaves it."""

    keeps_deferred, hold_limit = True, 1000

    def __init__(self, slots, policy):
        self.slots, self.policy, self.left = slots, policy, []

    def resolve(self, _task):
        return self.policy

    def free(self):
        return self.slots

    def start(self, task):
        self.slots -= 1
        self.left.append(task.request)

    def defer(self, task, *_):
        self.left.append(task.request)
        return True

    def monotonic(self):
        return 1000.0

    def is_revoked_or_expired(self, _task):
        return False

    def call_after(self, *_):
        pass

    time = monotonic
    is_gone = is_revoked_or_expired
    when_free = hold = release = record_refusal = call_after


class ParksAll(NoParking):
    """Parking that takes every task."""

    is_open = True

    def __init__(self, worker):
        self._worker = worker

    def blocks(self, *_):
        return True

    def add(self, task):
        self._worker.left.append(task.request)


class Unavailable(MemoryStore):
    def admit(self, *_):
        def run():
            raise StoreUnavailable("the store", "no answer")

        return MemoryStoreCall(run)


class Stale(MemoryStore):
    """Replies to every second call that the limits have changed."""

    calls = 0

    def admit(self, requests, version):
        self.calls += 1
        if self.calls % 2:
            self.set_limits({"all": f"{self.calls}/s"})
        return super().admit(requests, version)


def submit_at(event, controller, tasks):
    """Submit the first task; another thread submits the second at *event* of the round; return whether it came."""
    count = 0
    first, second = tasks

    def on_event(*_):
        nonlocal count
        if count == event:
            thread = threading.Thread(target=controller.submit, args=(second,))
            thread.start()
            thread.join()
        count += 1

    sys.setprofile(on_event)
    try:
        controller.submit(first)
    finally:
        sys.setprofile(None)
    return count > event


@pytest.mark.parametrize("on_limit", ["retry", "park"])
@pytest.mark.parametrize("slots", [0, 8])
@pytest.mark.parametrize(
    ("store", "on_store_error"),
    [(MemoryStore, "hold"), (Stale, "hold"), (Unavailable, "hold"), (Unavailable, "admit"), (Unavailable, "refuse")],
)
def test_a_task_submitted_by_another_thread_at_any_instant_of_a_round_is_kept(store, on_store_error, slots, on_limit):
    settings = Settings(on_store_error=on_store_error)
    event, reached = 0, True
    while reached:
        throttled = store(FakeClock(1000.0))
        limits = ActiveLimits(dict, lambda: settings, lambda store=throttled: store)
        worker = Worker(slots, ThrottlePolicy((Level("queue", "q:x", Limit(1, 1)),), on_limit=on_limit))
        context = WorkerContext(settings, throttled, limits, Stats())
        controller = AdmissionController(worker, context, BlockingRunner(), WaitLimits(600, 900))
        if on_limit == "park":
            controller.prechecks.parking = controller._parking = ParksAll(worker)
        reached = submit_at(event, controller, [PendingTask(name, "x", 1000.0) for name in ("first", "second")])
        present = [*worker.left, *(task.request for task in controller.close())]
        assert sorted(present) == (["first", "second"] if reached else ["first"]), event
        event += 1
    assert event > 20
