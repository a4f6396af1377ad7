"""Dispatched tasks of one worker, until their outcome has been reported to the store."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bucketflow_celery.scheduling.model import DispatchedTask, Lane, Refund, Settlement

__all__ = ["InFlightTasks"]


@dataclass(frozen=True, slots=True)
class _Task:
    """A dispatched task. *worker* had the lease: a worker that loses its lease takes another name."""

    worker: str
    queue: str
    lane: Lane


@dataclass(slots=True)
class _Unreported:
    ended: list[bytes] = field(default_factory=list)
    returned: list[tuple[bytes, Lane, bool]] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)


class InFlightTasks:
    """
    The dispatched tasks of one worker process, over all its connections to the broker.

    Args:
        on_end: Called, from any thread, when there is an outcome to report.
    """

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self._tasks: dict[bytes, _Task] = {}
        self._ends: deque[tuple[bytes, bool]] = deque()
        self._unreported: dict[tuple[str, str], _Unreported] = {}
        self._lock = threading.Lock()  # between two connections to the broker the pool's threads report themselves

    def has(self, uid: bytes) -> bool:
        """Return whether the task *uid* was dispatched to this worker and its end has not been reported."""
        return uid in self._tasks

    def add(self, worker: str, dispatched: DispatchedTask) -> Callable[[bool], None]:
        """
        Add a task that was dispatched to *worker*.

        Returns:
            A function to be called, from any thread, with ``False`` when the task has ended, with ``True`` when it
            must return to its lane.
        """
        leased = dispatched.owned
        uid = leased.item.uid
        self._tasks[uid] = _Task(worker, leased.queue, leased.lane)

        def on_end(returns: bool) -> None:  # noqa: FBT001 - the outcome
            self._ends.append((uid, returns))
            self._on_end()

        return on_end

    def return_unstarted(self, uid: bytes) -> None:
        """Return a task that has not started to its lane."""
        task = self._tasks[uid]
        with self._lock:
            self._unreported_of(task).returned.append((uid, task.lane, False))

    def refund(self, uid: bytes, refund: Refund) -> None:
        """Refund the tokens and the turn of the task *uid*, which has not started."""
        with self._lock:
            self._unreported_of(self._tasks[uid]).refunds.append(refund)

    def settlements(self) -> list[tuple[str, Settlement]]:
        """Return what is to be reported, by queue; call :meth:`confirm` with each."""
        if not self._ends and not self._unreported:
            return []
        with self._lock:
            while self._ends:
                uid, returns = self._ends.popleft()
                task = self._tasks.get(uid)
                if task is not None and returns:
                    self._unreported_of(task).returned.append((uid, task.lane, True))
                elif task is not None:
                    self._unreported_of(task).ended.append(uid)
            unreported, self._unreported = self._unreported, {}
        return [
            (queue, Settlement(worker, tuple(one.ended), (), tuple(one.returned), tuple(one.refunds)))
            for (queue, worker), one in unreported.items()
        ]

    def confirm(self, queue: str, settlement: Settlement, *, delivered: bool) -> None:
        """
        Record what became of the report of *settlement*.

        A report that was not *delivered* is repeated: a task that the worker no longer owns can neither end nor return
        twice. Its refunds are dropped: they might count twice.
        """
        if delivered:
            for uid in (*settlement.ended, *(uid for uid, _, _ in settlement.returned)):
                self._tasks.pop(uid, None)
            return
        with self._lock:
            unreported = self._unreported.setdefault((queue, settlement.worker), _Unreported())
            unreported.ended[:0] = settlement.ended
            unreported.returned[:0] = settlement.returned

    def _unreported_of(self, task: _Task) -> _Unreported:
        return self._unreported.setdefault((task.queue, task.worker), _Unreported())
