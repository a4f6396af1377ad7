"""The actions on one pending task: start, hold, defer, requeue, fail. Each is counted."""

from __future__ import annotations

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.deferred_levels import DeferredLevels
from bucketflow_celery.admission.hold_queues import HoldQueue
from bucketflow_celery.admission.interfaces import WaitLimits, Worker
from bucketflow_celery.admission.paused_countdown import PausedCountdown
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.refusal import exceeds_max_wait
from bucketflow_celery.config.levels import Level
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits

__all__ = ["TaskActions"]

#: A copy of a task is expected after up to this many times the estimated queueing delay.
QUEUEING_MARGIN = 1.5


class TaskActions:
    """
    Acts on tasks through the worker, and counts.

    Args:
        worker: The worker.
        stats: Its counters.
        limits: The limits and purge marks in force.
        wait_limits: The longest waits outside of the queue.

    Attributes:
        wait_limits: As given.
    """

    def __init__(self, worker: Worker, stats: Stats, limits: ActiveLimits, wait_limits: WaitLimits) -> None:
        self._worker = worker
        self._stats = stats
        self._limits = limits
        self._deferred = DeferredLevels()
        self.wait_limits = wait_limits
        self._paused_countdown = PausedCountdown(wait_limits.max_countdown, ends_early=worker.keeps_deferred)

    def start(self, task: PendingTask) -> None:
        """Run *task* in a free slot."""
        self.leave(task)
        self._stats.admitted += 1
        self._worker.start(task)

    def fail(self, task: PendingTask, error: BucketflowError) -> None:
        """End *task* with *error* as its result."""
        self.leave(task)
        self._stats.failed += 1
        self._worker.fail(task, error)

    def has_been_purged(self, task: PendingTask) -> bool:
        """Return whether *task* was received first before its purge; it has left the worker then."""
        seen_at = self._limits.store_time(task.received_at) if task.seen_at is None else task.seen_at
        if seen_at is None or seen_at >= task.policy.purged_at:
            return False
        self.leave(task)
        self._stats.purged += 1
        self._worker.drop(task)
        return True

    def end_purged(self) -> None:
        """End the purged tasks that wait for their ETA."""
        if not self._limits.purges.latest:
            return
        self._stats.purged += self._worker.end_purged(self._deferred.take_purged(self._limits.purges))

    def hold(self, task: PendingTask, queue: HoldQueue) -> None:
        """Let *task* wait in *queue*; it fails at once if that would take too long."""
        waited = self.begin_waiting(task)
        # At a tenant or task type the task has a reservation of its own, so its wait is known already.
        if queue.level is not None and queue.level.blocks_queue and task.policy.max_wait is not None:
            wait = queue.wait_ahead(self._worker.monotonic(), task.rank)
            failure = exceeds_max_wait(task.policy, queue.level, waited + wait)
            if failure is not None:
                self.fail(task, failure.error)
                return
        queue.add(task)
        if not task.is_held:
            self._stats.held += 1
        else:
            self._worker.release(task)
        task.is_held = True
        self._worker.hold(task, queue.level)

    def defer(self, task: PendingTask, countdown: float) -> bool:
        """Return *task* to the broker, due in *countdown* seconds; ``False`` if the broker did not accept it."""
        self.begin_waiting(task)
        self._record_receipt(task)
        if not self._worker.defer(task, countdown):
            return False
        self._stats.deferred += 1
        self._deferred.record(task)
        self.leave(task)
        return True

    def defer_paused(self, task: PendingTask) -> bool:
        """Return *task*, whose tenant or task type is paused, to the broker; ``False`` likewise."""
        waited = self.begin_waiting(task)
        return self.defer(task, min(self._paused_countdown.after(waited), task.longest_countdown(waited)))

    def requeue(self, task: PendingTask) -> bool:
        """
        Leave *task* to the broker, for any worker; ``False`` if it must stay here.

        It keeps its reservations, unless no copy of it can be published.
        """
        if task.can_go_elsewhere and self._worker.can_defer(task):
            return self.defer(task, task.time_to_retry(self._worker.monotonic()))
        self._record_receipt(task)
        if not self._worker.requeue(task):
            return False
        self._stats.requeued += 1
        self.leave(task)
        return True

    def pass_on(self, task: PendingTask) -> bool:
        """Let any worker that has a slot start *task*, which is due; ``False`` if it must stay here."""
        if task.due_since is None:
            task.due_since = self._worker.time() - task.slot_wait(self._worker.monotonic())
        return self.defer(task, 0.0)

    def would_return_late(self, task: PendingTask, wait: float) -> bool:
        """Return whether a copy of *task* would stand in its queue beyond its turn, in *wait* seconds."""
        return self._worker.can_hold_many and wait <= QUEUEING_MARGIN * self._worker.queueing_delay(task.queue)

    def is_overdue(self, task: PendingTask) -> bool:
        """Return whether this worker has had *task* for so long that it must leave, wherever it waits."""
        before = self.wait_limits.max_countdown if task.has_returned else 0.0
        waited = self._worker.monotonic() - task.received_at
        return waited + before > self.wait_limits.max_unacknowledged

    def has_ended(self, task: PendingTask) -> bool:
        """Return whether *task* was revoked or has expired; it has left the worker then."""
        has_ended = self._worker.is_revoked_or_expired(task)
        if has_ended:
            self.leave(task)
        return has_ended

    def leave(self, task: PendingTask) -> None:
        """Release what was kept for *task* while it was held."""
        if task.is_held:
            task.is_held = False
            self._worker.release(task)

    def begin_waiting(self, task: PendingTask) -> float:
        """Record that *task* waits from now on, unless it does already; return the seconds it has waited so far."""
        now = self._worker.time()
        if task.waiting_since is None:
            task.waiting_since = now
        return max(0.0, now - task.waiting_since)

    def record_refusal(self, task: PendingTask, level: Level, wait: float) -> None:
        """Count and announce that *level* has refused *task* for *wait* seconds."""
        self._stats.refused += 1
        self._record_receipt(task)
        self._worker.record_refusal(task, level, wait)

    def _record_receipt(self, task: PendingTask) -> None:
        # Not earlier: a purge of which this worker does not know yet may have come before the task.
        if task.seen_at is None:
            task.seen_at = self._limits.store_time(task.received_at)
