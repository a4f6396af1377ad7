"""What becomes of those that the store was asked for: they start, are parked, wait in a queue here, or return."""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

from bucketflow.limit import SECOND
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.prechecks import Prechecks
from bucketflow_celery.admission.reservations import ReservationPool
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest

__all__ = ["DecisionHandler", "Unsettled"]

#: Tasks, each with the queue it stood in, the question and the decision.
Unsettled: TypeAlias = "deque[tuple[tuple[PendingTask, HoldQueue | None], AdmissionRequest, AdmissionDecision]]"


class DecisionHandler:
    """
    Acts on answers.

    Args:
        hold_queues: Where those wait who stay in this worker.
        reservations: What the hold_queues were promised.
        actions: Does to each of them what was decided.
        prechecks: Parks, and is told which levels are exhausted.
    """

    def __init__(
        self, hold_queues: HoldQueues, reservations: ReservationPool, actions: TaskActions, prechecks: Prechecks
    ) -> None:
        self._hold_queues = hold_queues
        self._reservations = reservations
        self._actions = actions
        self._prechecks = prechecks

    def settle(self, unsettled: Unsettled) -> None:
        """Act on all of *unsettled*, in order; those that are still in it when this raises were not reached."""
        fronts: dict[HoldQueue, list[PendingTask]] = {}
        exhausted: dict[str, HoldQueue] = {}
        left: list[AdmissionRequest] = []
        try:
            while unsettled:
                (task, origin), request, decision = unsettled.popleft()
                if decision.admitted:
                    self._actions.start(task)
                    continue
                if task.policy.parks:
                    self._refuse_and_park(task, request, decision, exhausted)
                    continue
                self._reservations.settle(task, decision)
                queue = self._hold_queue_for(task, origin, request, decision, exhausted)
                if queue is None:
                    left.append(request)
                elif queue is origin:
                    fronts.setdefault(queue, []).append(task)
                else:
                    self._actions.join(task, queue)
        finally:  # whatever went wrong with one of them, the others are still here
            for queue, tasks in fronts.items():
                queue.put_back(tasks)
            for request in left:
                self._hold_queues.wake(request)

    def _refuse_and_park(
        self, task: PendingTask, request: AdmissionRequest, decision: AdmissionDecision, exhausted: dict[str, HoldQueue]
    ) -> None:
        if decision.binding is not None:
            level = request.path[decision.binding]
            if level.blocks_queue:
                exhausted[level.key] = self._hold_queues.of(level.key, level)
            self._prechecks.mark_exhausted(level, decision.wait / SECOND)
            if self._actions.is_refused(task, level, decision.wait / SECOND):
                return
        self._prechecks.park(task)

    def _hold_queue_for(
        self,
        task: PendingTask,
        origin: HoldQueue | None,
        request: AdmissionRequest,
        decision: AdmissionDecision,
        exhausted: dict[str, HoldQueue],
    ) -> HoldQueue | None:
        """Act on a refusal; return the queue in which the task waits, ``None`` if it does not wait here."""
        if decision.binding is None:
            return next(exhausted[level.key] for level in request.path if level.key in exhausted)
        level = request.path[decision.binding]
        queue = self._hold_queues.of(level.key, level)
        if level.blocks_queue:
            exhausted[level.key] = queue
        wait, had_place = decision.wait / SECOND, request.reservations[decision.binding] > 0
        return queue if self._actions.refuse(task, origin, level, wait, had_place=had_place) else None
