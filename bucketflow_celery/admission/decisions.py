"""Applies admission decisions: tasks start, are held, parked or deferred, or fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from bucketflow.limit import SECOND
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.overflow import Overflow
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks
from bucketflow_celery.admission.priorities import Priorities
from bucketflow_celery.admission.refusal import Defer, Fail, Hold, Park, Refusal, on_refusal
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest

__all__ = ["Batch", "DecidedTask", "DecisionHandler"]

#: Tasks that were asked for, each with the hold queue that it was taken from, if it was held.
Batch: TypeAlias = "list[tuple[PendingTask, HoldQueue | None]]"


class DecidedTask(NamedTuple):
    """
    A task, and what was decided.

    Attributes:
        task: The task.
        origin: The hold queue that it was taken from; ``None`` if it was not held.
        request: What was asked.
        decision: The decision.
    """

    task: PendingTask
    origin: HoldQueue | None
    request: AdmissionRequest
    decision: AdmissionDecision


class DecisionHandler:
    """
    Applies decisions.

    Args:
        inbox: The received tasks that were not asked for yet. Other threads append to it at any time.
        hold_queues: Of the worker.
        actions: Acts on each task.
        prechecks: Parks tasks, and remembers which levels are exhausted.
        priorities: Lets urgent tasks start earlier.
        overflow: Sends tasks back for which there is no room.
    """

    def __init__(
        self,
        hold_queues: HoldQueues,
        actions: TaskActions,
        prechecks: Prechecks,
        priorities: Priorities,
        overflow: Overflow,
    ) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._prechecks = prechecks
        self._priorities = priorities
        self._overflow = overflow

    def apply(
        self,
        inbox: deque[PendingTask],
        batch: Batch,
        requests: Sequence[AdmissionRequest],
        decisions: Sequence[AdmissionDecision],
    ) -> None:
        """
        Apply *decisions*, in order.

        Args:
            inbox: To its front go the tasks that are left if an error ends this.
            batch: The tasks.
            requests: What was asked for each.
            decisions: What was decided for each; all of the same length and order.
        """
        decided = deque(
            DecidedTask(task, queue, request, decision)
            for (task, queue), request, decision in zip(batch, requests, decisions, strict=True)
        )
        try:
            self._apply(decided)
        finally:  # an error with one task must not lose the others
            inbox.extendleft(one.task for one in reversed(decided))

    def _apply(self, decided: deque[DecidedTask]) -> None:
        fronts: dict[HoldQueue, list[PendingTask]] = {}
        exhausted: dict[str, Level] = {}
        departed: list[AdmissionRequest] = []
        try:
            while decided:
                one = decided.popleft()
                if one.decision.admitted:
                    self._actions.start(one.task)
                    continue
                level = self._refuse(one, exhausted)
                if level is None:
                    departed.append(one.request)
                    continue
                queue = self._hold_queues.of(level.key, level)
                if queue is one.origin:
                    fronts.setdefault(queue, []).append(one.task)
                else:
                    self._actions.hold(one.task, queue)
        finally:  # an error with one task must not lose the others
            for queue, tasks in fronts.items():
                queue.put_back(tasks)
            for request in departed:
                self._hold_queues.wake(request)

    def _refuse(self, one: DecidedTask, exhausted: dict[str, Level]) -> Level | None:
        """Act on a refusal; return the level at which the task is to be held, ``None`` if it is not held."""
        task, origin, request, decision = one
        if not task.policy.parks:
            self._hold_queues.keep(task, decision)
            self._priorities.record(task.rank, task.reservations)
        elif decision.binding is None:
            self._prechecks.park(task)
            return None
        if decision.binding is None:  # skipped, because a task before it was refused
            return next(exhausted[level.key] for level in request.path if level.key in exhausted)
        level, wait = request.path[decision.binding], decision.wait / SECOND
        if level.blocks_queue:
            exhausted[level.key] = level
        if origin is None or origin.level is None or origin.level.key != level.key:  # else it was counted before
            self._actions.record_refusal(task, level, wait)
        self._prechecks.set_retry(task, level, wait)
        refusal = Refusal(level, wait, self._actions.begin_waiting(task), request.reservations[decision.binding] > 0)
        return level if self._is_held(task, refusal) else None

    def _is_held(self, task: PendingTask, refusal: Refusal) -> bool:
        """Act on *refusal* unless the task is to be held; return whether it is."""
        task.due_since = None  # it waits for tokens again
        limits = self._actions.wait_limits
        match on_refusal(task.policy, refusal, limits.max_countdown):
            case Hold():
                return not self._overflow.takes_refused(task, refusal)
            case Park():
                self._prechecks.park(task)
            case Defer(countdown):
                returns_late = refusal.wait <= limits.max_hold / 2 and self._actions.would_return_late(
                    task, refusal.wait
                )
                is_held = returns_late or self._priorities.may_start_earlier(task, refusal.level, refusal.wait)
                return is_held or not self._actions.defer(task, min(countdown, task.longest_countdown(refusal.waited)))
            case Fail(error):
                self._actions.fail(task, error)
        return False
