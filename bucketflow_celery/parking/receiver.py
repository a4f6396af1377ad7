"""What becomes of the tasks that a worker is dispatched from the backlogs: each starts, ends, or goes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.interfaces import ParkingWorker, Tenure
from bucketflow_celery.scheduling.model import DispatchedTask, DispatchRequest
from bucketflow_celery.stats import Stats

__all__ = ["PAUSE", "DispatchReceiver"]

logger = logging.getLogger(__name__)

#: Seconds after which an answer is not to be acted on: the lease gives back what nobody seems to have.
STALE = 4.0
#: Seconds before a worker asks again that had no lease, which is about to be renewed, or could start nothing.
PAUSE = 0.25

#: It has started or ended; it has ended, and its tokens are there for another; or neither could be done.
_Outcome: TypeAlias = Literal["over", "unused", "back"]


class DispatchReceiver:
    """
    Acts on tasks that were dispatched out, and counts.

    Args:
        worker: The worker.
        tenure: Its lease.
        in_flight: What it was dispatched before.
        stats: Where to count.
    """

    def __init__(self, worker: ParkingWorker, tenure: Tenure, in_flight: InFlightTasks, stats: Stats) -> None:
        self._worker = worker
        self._tenure = tenure
        self._in_flight_tasks = in_flight
        self._stats = stats

    def receive(self, request: DispatchRequest, dispatched: Sequence[DispatchedTask], age: float) -> float | None:
        """
        Start, end or give back each task.

        Args:
            request: What was asked for.
            dispatched: The tasks in the answer.
            age: Seconds since it was asked for.

        Returns:
            When to ask for others instead, in seconds of the monotonic clock; ``None`` if there is no need.
        """
        poll_at = None
        ends = [self._in_flight_tasks.take(request.worker, one) for one in dispatched]
        for one, on_end in zip(dispatched, ends, strict=True):
            try:
                outcome = self._receive(one, on_end) if self._is_mine(request, age) else "back"
            except Exception:  # the others of this answer are still to start
                logger.exception("a parked task of %s goes back, it could not be received", one.owned.lane.task)
                outcome = "back"
            if outcome == "unused":
                poll_at = self._worker.monotonic()
                self._refund(request, one)
            elif outcome == "back":
                poll_at = self._worker.monotonic() + PAUSE  # at once it would be dispatched the same again
                self._in_flight_tasks.give_back(one.owned.item.uid)
                self._refund(request, one)
        return poll_at

    def _is_mine(self, request: DispatchRequest, age: float) -> bool:
        """Return whether the dispatched tasks still belong to this worker; if not they go back."""
        return self._tenure.holds() and request.worker == self._tenure.worker and age < STALE

    def _receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> _Outcome:
        self._stats.dispatched += 1
        task = self._worker.receive(dispatched, on_end)
        if task is None:
            on_end(False)  # noqa: FBT003 - it does not go back
            return "over"
        if not dispatched.admitted:
            self._worker.give_up(task)
            return "over" if self._worker.is_settled(task) else "back"
        if self._worker.is_revoked_or_expired(task):
            return "unused" if self._worker.is_settled(task) else "back"
        self._stats.admitted += 1
        self._worker.start(task)
        return "over"

    def _refund(self, request: DispatchRequest, dispatched: DispatchedTask) -> None:
        if dispatched.admitted:
            path = request.path_of(dispatched.owned.lane)
            self._in_flight_tasks.refund(dispatched.owned.item.uid, path, dispatched.owned.item.cost)
