"""What a worker was dispatched from the backlogs, and what the store must still be told of it. Bookkeeping, no I/O."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.model import DispatchedTask, Lane, Settlement

__all__ = ["InFlightTasks"]


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that was dispatched out, and to whom: a worker that was taken for dead goes on under another name."""

    worker: str
    queue: str
    lane: Lane


@dataclass(slots=True)
class _Unreported:
    ended: list[bytes] = field(default_factory=list)
    returned: list[tuple[bytes, Lane, bool]] = field(default_factory=list)
    refunds: list[tuple[tuple[Level, ...], float]] = field(default_factory=list)


class InFlightTasks:
    """
    The parked tasks of one worker, over its whole life.

    Args:
        on_news: Called, from any thread, when there is something to tell the store.
    """

    def __init__(self, on_news: Callable[[], None]) -> None:
        self._on_news = on_news
        self._tasks: dict[bytes, _Task] = {}
        self._ends: deque[tuple[bytes, bool]] = deque()
        self._unreported: dict[tuple[str, str], _Unreported] = {}
        self._lock = threading.Lock()  # between two connections to the broker the pool's threads tell of ends

    def has(self, uid: bytes) -> bool:
        """Return whether the task *uid* was dispatched to this worker, and the store was not told yet that it.

        has ended.
        """
        return uid in self._tasks

    def take(self, worker: str, dispatched: DispatchedTask) -> Callable[[bool], None]:
        """
        Take note of a task that was dispatched to *worker*.

        Returns:
            What is to be called, from any thread, with ``False`` when it has ended, with ``True`` when it goes back.
        """
        owned = dispatched.owned
        uid = owned.item.uid
        self._tasks[uid] = _Task(worker, owned.queue, owned.lane)

        def on_end(back: bool) -> None:  # noqa: FBT001 - the answer of whoever ends it
            self._ends.append((uid, back))
            self._on_news()

        return on_end

    def give_back(self, uid: bytes) -> None:
        """Let a task go back that has not started."""
        task = self._tasks[uid]
        with self._lock:
            self._unreported_of(task).returned.append((uid, task.lane, False))

    def refund(self, uid: bytes, path: tuple[Level, ...], cost: float) -> None:
        """Let the tokens go back that were taken for a task that has not started."""
        with self._lock:
            self._unreported_of(self._tasks[uid]).refunds.append((path, cost))

    def settlements(self) -> list[tuple[str, Settlement]]:
        """Return what is to be told, by queue; call :meth:`told` with each."""
        with self._lock:
            while self._ends:
                uid, back = self._ends.popleft()
                task = self._tasks.get(uid)
                if task is not None and back:
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
        Take note of what became of a settlement.

        If it was not *delivered* it is reported again: a task that the worker no longer owns cannot end or
        return twice. Its refunds are dropped: they might count twice.
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
