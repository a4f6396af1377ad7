"""The benchmark of a large backlog: worker memory and dispatch time with a hundred thousand parked tasks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import redis
from celery import Celery

from benchmarks.throttle.measuring import Row
from benchmarks.throttle.parking import QUEUE, parking, wait_parked
from benchmarks.throttle.workers import TASKS
from bucketflow_celery import Throttle
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, LeasedTask, Settlement, TenantSummary


class SingleSlotWorker:
    """
    Dispatches tasks as a worker with one free slot does, and returns them to the backlog.

    Args:
        port: The port of the Redis server.
    """

    #: A bucket that is never exhausted, instead of the queue's.
    _LEVELS = (Level("queue", "q:single", Limit(1e5, 1e5)),)

    def __init__(self, port: int) -> None:
        app = Celery("single")

        @app.task(name=f"{TASKS}.work", shared=False)
        def work(tenant: str) -> None:  # registered, because a worker is dispatched only the tasks that it knows
            del tenant

        self._client = redis.Redis(port=port, db=1)
        self._throttle = Throttle(app, client=self._client, timeout=10)
        self._backlogs = self._throttle.store.backlogs
        self._known: tuple[TenantSummary, ...] = ()

    def cost(self, count: int) -> float:
        """Return the server's µs to dispatch one task: the median of five means over *count* calls."""
        self._backlogs.renew("single", 60).run()
        self._return(self._dispatch())  # its reply names the tenants for the next request
        cost = median(self._cost(count) for _ in range(5))
        self._backlogs.renew("single", 0).run()
        return cost

    def _cost(self, count: int) -> float:
        before = self._spent()
        dispatched = [owned for _ in range(count) for owned in self._dispatch()]
        calls, spent = (after - earlier for after, earlier in zip(self._spent(), before, strict=True))
        self._return(dispatched)
        if len(dispatched) != count:
            raise RuntimeError(f"{len(dispatched)} of {count} tasks were dispatched")
        return spent / calls

    def _dispatch(self) -> list[LeasedTask]:
        limits = self._throttle.active_limits
        candidates = tuple(limits.tenant_spec(QUEUE, known) for known in self._known)
        request = DispatchRequest("single", 1, self._LEVELS, candidates)
        reply = self._backlogs.dispatch(QUEUE, request, limits.version).run()
        if not isinstance(reply, DispatchReply):
            raise TypeError(f"expected a DispatchReply, got {reply!r}")
        self._known = reply.next
        return [one.owned for one in reply.dispatched]

    def _return(self, tasks: Sequence[LeasedTask]) -> None:
        returned = tuple((task.item.uid, task.lane, False) for task in tasks)
        self._backlogs.settle(QUEUE, Settlement("single", returned=returned)).run()

    def _spent(self) -> tuple[int, int]:
        spent = self._client.info("commandstats")["cmdstat_evalsha"]
        return spent["calls"], spent["usec"]


def large_backlog(port: int) -> Row:
    """Park a hundred thousand tasks."""
    names = [f"t{number}" for number in range(10)]
    with parking(port, {"queues": {QUEUE: {"rate": "1/h", "capacity": 1}}}, count=False) as (run, ours):
        worker = SingleSlotWorker(port)
        sent, memory, cost, took = 0, {}, {}, 0.0
        for total in (1_001, 5_001, 100_001):
            begin = time.monotonic()
            run.send_many(total - sent, names)
            wait_parked(ours, total - 1, 300)
            sent, took = total, time.monotonic() - begin
            time.sleep(1)
            memory[total] = run.fleet.memory()
            if total != 5_001:
                cost[total] = worker.cost(150)
        counters = run.counters()
        used = redis.Redis(port=port).info("memory")["used_memory"] / 1e6
    growth = [late / early - 1 for early, late in zip(memory[5_001], memory[100_001], strict=True)]
    sizes = " and ".join(f"{size:.1f} MB ({by:+.1%})" for size, by in zip(memory[100_001], growth, strict=True))
    slower = cost[100_001] / cost[1_001]
    return Row(
        "100 000 parked tasks of 10 tenants",
        f"worker memory {sizes} "
        f"since 5 000; {cost[100_001]:.0f} µs a dispatch against {cost[1_001]:.0f} at 1 000: {slower:.2f} times; "
        f"{counters['parked']} parked, the last 95 000 in {took:.0f} s, Redis {used:.0f} MB",
        "±5 %, <= 1.5 times, each parked once",
        max(map(abs, growth)) <= 0.05 and slower <= 1.5 and counters["parked"] == sent - 1,
    )
