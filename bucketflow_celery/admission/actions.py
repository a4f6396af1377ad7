"""What is done with one task at the gate: it starts, waits here, returns to the broker, or is given up."""

from __future__ import annotations

from typing import Any

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.hold_queues import HoldQueue
from bucketflow_celery.admission.interfaces import Worker
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.refusal import Fail, Hold, exceeds_max_wait, on_refusal
from bucketflow_celery.config.levels import Level
from bucketflow_celery.stats import Stats

__all__ = ["TaskActions"]


class TaskActions:
    """
    Acts on tasks, and counts.

    Args:
        worker: The worker.
        stats: Where to count.
        max_countdown: Longest countdown, in seconds.
    """

    def __init__(self, worker: Worker, stats: Stats, max_countdown: float) -> None:
        self._worker = worker
        self._stats = stats
        self._max_countdown = max_countdown

    def start(self, task: PendingTask) -> None:
        """Run it in a free slot."""
        self.leave(task)
        self._stats.admitted += 1
        self._worker.start(task)

    def fail(self, request: Any, error: BucketflowError) -> None:
        """Give it up, with *error* as its result."""
        self._stats.failed += 1
        self._worker.fail(request, error)

    def give_up(self, task: PendingTask, error: BucketflowError) -> None:
        """Let it wait no more: see :meth:`fail`."""
        self.leave(task)
        self.fail(task.request, error)

    def requeue(self, task: PendingTask) -> bool:
        """Leave it to the broker, for any worker; ``False`` if it must stay here."""
        if not self._worker.requeue(task):
            return False
        self._stats.requeued += 1
        self.leave(task)
        return True

    def is_revoked_or_expired(self, task: PendingTask) -> bool:
        """Return whether it was revoked or has expired; it has left then."""
        gone = self._worker.is_revoked_or_expired(task)
        if gone:
            self.leave(task)
        return gone

    def leave(self, task: PendingTask) -> None:
        """Take note that it does not wait here any more."""
        if task.is_held:
            task.is_held = False
            self._worker.release(task)

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """Send it to the broker, to come again in *countdown* seconds; ``False`` if the broker did not take it."""
        self.waited(task)
        if not self._worker.defer(task, countdown):
            return False
        self._stats.deferred += 1
        self.leave(task)
        return True

    def waited(self, task: PendingTask) -> float:
        """Return the seconds since it was first held up, which is now if it never was."""
        now = self._worker.time()
        if task.first_refused_at is None:
            task.first_refused_at = now
        return max(0.0, now - task.first_refused_at)

    def join(self, task: PendingTask, queue: HoldQueue) -> None:
        """Let it wait in *queue*, unless that would be too long."""
        wait = queue.wait_ahead(self._worker.monotonic())
        waited = self.waited(task)
        if queue.level is not None and (end := exceeds_max_wait(task.policy, queue.level, waited + wait)) is not None:
            self.give_up(task, end.error)
            return
        queue.add(task)
        if not task.is_held:
            self._stats.held += 1
        else:
            self._worker.release(task)
        task.is_held = True
        self._worker.hold(task, queue.level)

    def is_refused(self, task: PendingTask, level: Level, wait: float) -> bool:
        """Tell of the refusal of one that is to be parked; return whether it is given up: it may not wait so long."""
        waited = self.waited(task)
        self._stats.refused += 1
        self._worker.refused(task, level, wait)
        if (end := exceeds_max_wait(task.policy, level, waited + wait)) is None:
            return False
        self.give_up(task, end.error)
        return True

    def refuse(
        self, task: PendingTask, origin: HoldQueue | None, level: Level, wait: float, *, had_place: bool
    ) -> bool:
        """
        Act on the refusal of one who came from the queue *origin*, if from any; return whether it waits in this worker.

        Args:
            task: The task.
            origin: Where it stood.
            level: The level that binds.
            wait: Seconds until it may ask again.
            had_place: Whether it came with a place in that level's queue.
        """
        waited = self.waited(task)
        task.retry_at = self._worker.monotonic() + wait
        if origin is None or origin.level is not level:
            self._stats.refused += 1
            self._worker.refused(task, level, wait)
        refused = on_refusal(task.policy, level, wait, waited, had_place=had_place, cap=self._max_countdown)
        if isinstance(refused, Fail):
            self.give_up(task, refused.error)
            return False
        return isinstance(refused, Hold) or not self.defer(task, refused.countdown)
