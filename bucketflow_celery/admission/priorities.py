"""
Priority order among the tasks that wait in one worker for one tenant or task type.

Reservations are granted in the order of the refusals, whatever the priorities. So when a task is due, it gives its
reservation to the most urgent task that this worker holds for the same level, and takes that task's later one. The
reservations stay the same, so the store is not asked, and no limit is affected. A task that gave way goes before all
later ones of its priority when the next of them is due: each of them then waits for one task more, and none for all.

Tasks in a broker or in another worker take no part.
"""

from __future__ import annotations

from collections.abc import Mapping

from bucketflow.limit import SECOND
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level

__all__ = ["Priorities"]

#: µs for which a task that is due is still expected: it may come late, or give way.
DUE_GRACE = SECOND
#: Most levels whose reservations are remembered.
MAX_LEVELS = 10_000


class Priorities:
    """
    Lets urgent tasks use the reservations of less urgent ones.

    Args:
        hold_queues: Of the worker.
        actions: Acts on each task.
    """

    def __init__(self, hold_queues: HoldQueues, actions: TaskActions) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._latest: dict[str, dict[int, int]] = {}  # reservation by key of the level and rank

    def record(self, rank: int, reservations: Mapping[str, int]) -> None:
        """Record that a task of *rank* waits, with *reservations* by key of the level, and may come to this worker."""
        for key, reservation in reservations.items():
            if key not in self._latest and len(self._latest) >= MAX_LEVELS:
                self._latest.clear()
            latest = self._latest.setdefault(key, {})
            latest[rank] = max(reservation, latest.get(rank, 0))

    def may_start_earlier(self, task: PendingTask, level: Level, wait: float) -> bool:
        """
        Return whether less urgent tasks wait for *level*, with reservations that *task* can use if it is held here.

        Args:
            task: Was refused, and has a reservation at *level*.
            level: A tenant or a task type.
            wait: Seconds that it has to wait.
        """
        now = task.reservations.get(level.key, 0) - wait * SECOND
        return any(rank > task.rank and at > now - DUE_GRACE for rank, at in self._latest.get(level.key, {}).items())

    def first(self, task: PendingTask, origin: HoldQueue | None, now: float) -> tuple[PendingTask, HoldQueue | None]:
        """
        Return the task to ask for in place of *task*, which is due, and the hold queue that it was taken from.

        Args:
            task: Is held instead if it gives way.
            origin: The hold queue that it was taken from; ``None`` if it was not held.
            now: Seconds of the monotonic clock.
        """
        for level in task.policy.path:
            queue = self._hold_queues.mixed(level, task) if level.key in task.reservations else None
            first = None if queue is None else self._more_urgent(queue, task, now)
            if queue is None or first is None:
                continue
            queue.tasks.remove(first)
            first.take_reservation_of(task, level.key)
            self.record(task.rank, task.reservations)
            if origin is None:
                self._actions.hold(task, queue)
            else:
                queue.add(task)
            return first, queue
        return task, origin

    def _more_urgent(self, queue: HoldQueue, task: PendingTask, now: float) -> PendingTask | None:
        before = now + task.patience(self._actions.begin_waiting(task))
        while (first := queue.more_urgent(task, before)) is not None and self._actions.has_ended(first):
            queue.tasks.remove(first)  # else the reservation would go to a task that does not start
        return first
