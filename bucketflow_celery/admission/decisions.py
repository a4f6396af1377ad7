"""Applies admission decisions: tasks start, are held, parked or deferred, or fail."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from bucketflow.limit import SECOND
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks
from bucketflow_celery.admission.refusal import Defer, Fail, Hold, Park, Refusal, on_refusal
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest

__all__ = ["DecidedTask", "DecisionHandler"]


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
        hold_queues: Of the worker.
        actions: Acts on each task.
        prechecks: Parks tasks, and remembers which levels are exhausted.
        max_countdown: Longest countdown in seconds.
    """

    def __init__(
        self, hold_queues: HoldQueues, actions: TaskActions, prechecks: Prechecks, max_countdown: float
    ) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._prechecks = prechecks
        self._max_countdown = max_countdown

    def apply(self, decided: deque[DecidedTask]) -> None:
        """Apply all of *decided*, in order. Those that are still in it when this raises were not reached."""
        fronts: dict[HoldQueue, list[PendingTask]] = {}
        exhausted: dict[str, HoldQueue] = {}
        departed: list[AdmissionRequest] = []
        try:
            while decided:
                one = decided.popleft()
                if one.decision.admitted:
                    self._actions.start(one.task)
                    continue
                queue = self._refuse(one, exhausted)
                if queue is None:
                    departed.append(one.request)
                elif queue is one.origin:
                    fronts.setdefault(queue, []).append(one.task)
                else:
                    self._actions.hold(one.task, queue)
        finally:  # an error with one task must not lose the others
            for queue, tasks in fronts.items():
                queue.put_back(tasks)
            for request in departed:
                self._hold_queues.wake(request)

    def _refuse(self, one: DecidedTask, exhausted: dict[str, HoldQueue]) -> HoldQueue | None:
        """Act on a refusal; return the queue in which the task is to be held, ``None`` if it is not held."""
        task, _, request, decision = one
        if not task.policy.parks:
            self._hold_queues.keep(task, decision)
        elif decision.binding is None:
            self._prechecks.park(task)
            return None
        if decision.binding is None:  # skipped, because a task before it was refused
            return next(exhausted[level.key] for level in request.path if level.key in exhausted)
        level, wait = request.path[decision.binding], decision.wait / SECOND
        queue = self._hold_queues.of(level.key, level)
        if level.blocks_queue:
            exhausted[level.key] = queue
        if one.origin is not queue:  # else it was counted when it joined that queue
            self._actions.record_refusal(task, level, wait)
        self._prechecks.set_retry(task, level, wait)
        refusal = Refusal(level, wait, self._actions.begin_waiting(task), request.reservations[decision.binding] > 0)
        return queue if self._is_held(task, refusal) else None

    def _is_held(self, task: PendingTask, refusal: Refusal) -> bool:
        """Act on *refusal* unless the task is to be held; return whether it is."""
        outcome = on_refusal(task.policy, refusal, self._max_countdown)
        match outcome:
            case Hold():
                return True
            case Park():
                self._prechecks.park(task)
            case Defer(countdown):
                return not self._actions.defer(task, countdown)
            case Fail(error):
                self._actions.fail(task, error)
        return False
