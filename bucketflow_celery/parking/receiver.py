"""What becomes of the tasks that a worker is handed from the backlogs: each starts, ends, or goes back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from bucketflow_celery.parking.in_flight_tasks import Holdings
from bucketflow_celery.parking.interfaces import RoomHost, Tenure
from bucketflow_celery.scheduling.model import Handed, Request
from bucketflow_celery.stats import Stats

__all__ = ["PAUSE", "Receiving"]

logger = logging.getLogger(__name__)

#: Seconds after which an answer is not to be acted on: the lease gives back what nobody seems to have.
STALE = 4.0
#: Seconds before a worker asks again that had no lease, which is about to be renewed, or could start nothing.
PAUSE = 0.25

#: It has started or ended; it has ended, and its tokens are there for another; or neither could be done.
_Fate: TypeAlias = Literal["over", "unused", "back"]


class Receiving:
    """
    Acts on tasks that were handed out, and counts.

    Args:
        host: The worker.
        tenure: Its lease.
        holdings: What it was handed before.
        stats: Where to count.
    """

    def __init__(self, host: RoomHost, tenure: Tenure, holdings: Holdings, stats: Stats) -> None:
        self._host = host
        self._tenure = tenure
        self._holdings = holdings
        self._stats = stats

    def receive(self, request: Request, handed: Sequence[Handed], age: float) -> float | None:
        """
        Start, end or give back each task.

        Args:
            request: What was asked for.
            handed: The tasks in the answer.
            age: Seconds since it was asked for.

        Returns:
            When to ask for others instead, in seconds of the monotonic clock; ``None`` if there is no need.
        """
        ask_at = None
        ends = [self._holdings.take(request.worker, one) for one in handed]
        for one, on_end in zip(handed, ends, strict=True):
            try:
                fate = self._receive(one, on_end) if self._is_mine(request, age) else "back"
            except Exception:  # the others of this answer are still to start
                logger.exception("a parked task of %s goes back, it could not be received", one.owned.lane.task)
                fate = "back"
            if fate == "unused":
                ask_at = self._host.monotonic()
                self._refund(request, one)
            elif fate == "back":
                ask_at = self._host.monotonic() + PAUSE  # at once it would be handed the same again
                self._holdings.give_back(one.owned.item.uid)
                self._refund(request, one)
        return ask_at

    def _is_mine(self, request: Request, age: float) -> bool:
        """Return whether what was handed out can have become nobody else's meanwhile; else it goes back, unharmed."""
        return self._tenure.holds() and request.worker == self._tenure.worker and age < STALE

    def _receive(self, handed: Handed, on_end: Callable[[bool], None]) -> _Fate:
        self._stats.handed += 1
        entry = self._host.receive(handed, on_end)
        if entry is None:
            on_end(False)  # noqa: FBT003 - it does not go back
            return "over"
        if not handed.admitted:
            self._host.give_up(entry)
            return "over" if self._host.is_settled(entry) else "back"
        if self._host.is_gone(entry):
            return "unused" if self._host.is_settled(entry) else "back"
        self._stats.admitted += 1
        self._host.start(entry)
        return "over"

    def _refund(self, request: Request, handed: Handed) -> None:
        if handed.admitted:
            path = request.path_of(handed.owned.lane)
            self._holdings.refund(handed.owned.item.uid, path, handed.owned.item.cost)
