"""Determines what limits each task of a worker: when it is received, and anew when other limits are in force."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter

from bucketflow.errors import BucketflowError
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.interfaces import Worker
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks

__all__ = ["PolicyResolver"]


class PolicyResolver:
    """
    Resolves tasks to their policies.

    Args:
        inbox: The received tasks that were not asked for yet. Other threads append to it at any time.
        hold_queues: Of the worker.
        actions: Acts on each task.
        prechecks: Decides about tasks without a call.
        worker: The worker.
    """

    def __init__(
        self,
        inbox: deque[PendingTask],
        hold_queues: HoldQueues,
        actions: TaskActions,
        prechecks: Prechecks,
        worker: Worker,
    ) -> None:
        self._inbox = inbox
        self._hold_queues = hold_queues
        self._actions = actions
        self._prechecks = prechecks
        self._worker = worker

    def resolve(self, task: PendingTask) -> bool:
        """Determine the policy of *task*; return whether it can start under it. If not, it has ended."""
        try:
            policy = self._worker.resolve(task)
        except BucketflowError as error:
            self._actions.fail(task, error)
            return False
        task.policy = policy if task.can_park or not policy.parks else replace(policy, on_limit="hold")
        if task.policy.purged_at and self._actions.has_been_purged(task):
            return False
        return self._prechecks.can_start(task)

    def resolve_all(self, taken: Iterable[PendingTask]) -> None:
        """Queue all tasks anew, and those that were *taken*, in their order: under new limits other levels may bind."""
        self._prechecks.forget_exhausted()
        tasks = self.take_all(taken)
        try:
            while tasks:
                task = tasks.popleft()
                task.retry_at = 0.0
                if self.resolve(task):
                    self._inbox.append(task)
        finally:  # an error with one task must not lose the others
            self._inbox.extend(tasks)
            self._actions.end_purged()

    def take_all(self, taken: Iterable[PendingTask]) -> deque[PendingTask]:
        """Take all tasks out of hold queues and inbox; return them and *taken*, in the order in which they came."""
        newcomers = [self._inbox.popleft() for _ in range(len(self._inbox))]
        tasks = [*taken, *self._hold_queues.clear(), *newcomers]
        return deque(sorted(tasks, key=attrgetter("received_at")))
