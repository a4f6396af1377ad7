"""Acts on dispatched tasks: each starts, ends, or returns to its lane."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.interfaces import ParkingWorker
from bucketflow_celery.parking.worker_lease import WorkerLease
from bucketflow_celery.scheduling.model import DispatchedTask, DispatchRequest
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits

__all__ = ["RETRY_PAUSE", "DispatchReceiver"]

logger = logging.getLogger("bucketflow_celery.parking")

#: Seconds after which a reply is too old to be acted on: the lease may have returned its tasks as orphans.
MAX_REPLY_AGE = 4.0
#: Seconds before the next poll of a worker that had no lease, or could not start what it received.
RETRY_PAUSE = 0.25

#: The task has started or ended; it has ended, and its tokens are free for another; or it must return to its lane.
_Outcome: TypeAlias = Literal["done", "unused", "returned"]


class DispatchReceiver:
    """
    Acts on dispatched tasks, and counts.

    Args:
        worker: The worker.
        lease: Its lease, with the tasks in flight.
        stats: The worker's counters.
        limits: The limits and purge marks in force.
    """

    def __init__(self, worker: ParkingWorker, lease: WorkerLease, stats: Stats, limits: ActiveLimits) -> None:
        self._worker = worker
        self._lease = lease
        self._in_flight_tasks = lease.in_flight_tasks
        self._stats = stats
        self._limits = limits

    def receive(self, request: DispatchRequest, dispatched: Sequence[DispatchedTask], age: float) -> float | None:
        """
        Start, end or return each task.

        Args:
            request: The request.
            dispatched: The tasks in the reply.
            age: Seconds since the request was sent.

        Returns:
            When to poll for other tasks instead, in seconds of the monotonic clock; ``None`` if there is no need.
        """
        poll_at = None
        # All of them are in flight before the first is acted on: an error then loses none.
        ends = [self._in_flight_tasks.add(request.worker, one) for one in dispatched]
        for one, on_end in zip(dispatched, ends, strict=True):
            outcome: _Outcome = "returned"
            try:
                if self._is_still_leased(request, age):
                    outcome = self._receive(one, on_end)
            except Exception:  # an error with one task must not lose the others
                logger.exception("parked task cannot be received and returns: task=%s", one.owned.lane.task)
            if outcome == "unused":
                poll_at = self._worker.monotonic()
            elif outcome == "returned":
                poll_at = self._worker.monotonic() + RETRY_PAUSE  # at once the same task would be dispatched again
                self._in_flight_tasks.return_unstarted(one.owned.item.uid)
            if outcome != "done" and one.admitted:
                self._in_flight_tasks.refund(one.owned.item.uid, request.refund_of(one.owned))
        return poll_at

    def _is_still_leased(self, request: DispatchRequest, age: float) -> bool:
        """Return whether no other worker can have reclaimed the tasks of this reply."""
        return self._lease.is_valid() and request.worker == self._lease.worker and age < MAX_REPLY_AGE

    def _receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> _Outcome:
        self._stats.dispatched += 1
        task = self._worker.receive(dispatched, on_end)
        if task is None:
            on_end(False)  # noqa: FBT003 - it does not return
            return "done"
        if self._limits.purges.latest and self._is_purged(dispatched, task):
            self._stats.purged += 1
            self._worker.drop(task)
            return "unused"
        if not dispatched.admitted:
            return "done" if self._worker.end_unstarted(task) else "returned"
        if self._worker.is_revoked_or_expired(task):
            return "unused" if self._worker.is_acknowledged(task) else "returned"
        self._stats.admitted += 1
        self._worker.start(task)
        return "done"

    def _is_purged(self, dispatched: DispatchedTask, task: PendingTask) -> bool:
        """Return whether a purge came before *task* was dispatched, and after its message was received first."""
        leased = dispatched.owned
        purged_at = self._limits.purges.purged_at(leased.queue, leased.lane.tenant, leased.lane.task)
        return purged_at > (leased.item.since if task.seen_at is None else task.seen_at)
