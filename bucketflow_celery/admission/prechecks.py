"""Decides about tasks locally where no call to the store is needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.interfaces import NoParking, Parking
from bucketflow_celery.admission.local_limits import LocalLimits
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, check_cost
from bucketflow_celery.store.circuit_breaker import CircuitBreaker

__all__ = ["Prechecks"]

#: The countdown in seconds of a task that costs more than this worker's own buckets can hold, while the store is away.
BEYOND_SHARE_COUNTDOWN = 10.0
#: Most levels remembered as exhausted.
MAX_EXHAUSTED = 10_000
#: Keys of the hold queues of tasks that wait for the store, for a place in a full backlog, and for the end of a pause.
STORE, BACKLOG_FULL, PAUSED = "", " full", " paused"


class Prechecks:
    """
    Decides about tasks without a call.

    Args:
        hold_queues: Of the worker.
        actions: Acts on each task.
        breaker: Of the connection to the store.
        local: Says what happens while it is open, and decides under ``on_store_error="local"``.
        monotonic: Returns the worker's time in seconds.

    Attributes:
        parking: Where tasks are parked.
    """

    def __init__(
        self,
        hold_queues: HoldQueues,
        actions: TaskActions,
        breaker: CircuitBreaker,
        local: LocalLimits,
        monotonic: Callable[[], float],
    ) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._breaker = breaker
        self._local = local
        self._monotonic = monotonic
        self._exhausted_until: dict[str, float] = {}  # by key of the level, as refusals of parked tasks said
        self.parking: Parking = NoParking()

    def can_start(self, task: PendingTask) -> bool:
        """Return whether *task* can ever start under these limits; if not, it has failed."""
        if self._may_be_parked(task):
            return True  # it may have run under other limits; parking finds out, and dispatch fails it if it must
        try:
            check_cost(task.policy.path, task.policy.cost, task.policy.calls)
        except CostExceedsCapacity as error:
            self._actions.fail(task, error)
            return False
        return True

    def must_ask(self, task: PendingTask, now: float) -> bool:
        """Return whether the store must decide about *task*; if not, it was decided here."""
        policy = task.policy
        if self._may_be_parked(task):
            self.park(task)
        elif policy.paused is not None:
            self._pause(task)
        elif not policy.path:
            self._actions.start(task)
        elif self._local.is_active:
            return self._must_ask_locally(task)
        elif self._breaker.open_until > now:
            self.without_store(task)
        elif policy.parks and self.blocks(task, now):
            self.park(task)
        elif not policy.parks and (queue := self._hold_queues.blocking(policy.path)) is not None:
            self._actions.hold(task, queue)
        else:
            return True
        return False

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether *task* would be refused in any case: its tenant has parked tasks, or a level is exhausted."""
        if self.parking.blocks(task, now):
            return True
        if task.policy.max_wait is not None:
            return False  # only the store knows whether its wait would exceed that
        return any(self._exhausted_until.get(level.key, now) > now for level in task.policy.path)

    def park_early(self, tasks: deque[PendingTask], received_before: float, now: float) -> None:
        """Take out of *tasks*, and park, those received before an instant and those that are blocked."""
        waiting: list[PendingTask] = []
        try:
            while tasks:
                task = tasks.popleft()
                is_late = task.received_at < received_before
                if task.policy.is_worth_parking and (is_late or self.blocks(task, now)):
                    self.park(task)
                else:
                    waiting.append(task)
        finally:
            tasks.extendleft(reversed(waiting))

    def first_parkable(self, tasks: deque[PendingTask]) -> PendingTask | None:
        """Return the first of *tasks* that is worth parking, ``None`` if there is none or nothing can be parked."""
        if not self.parking.is_open:
            return None
        return next((task for task in list(tasks) if task.policy.is_worth_parking), None)  # other threads append

    def set_retry(self, task: PendingTask, level: Level, wait: float) -> None:
        """Record that *level* has refused *task* for *wait* seconds."""
        task.retry_at = self._monotonic() + wait
        if task.policy.parks:
            if len(self._exhausted_until) >= MAX_EXHAUSTED:
                self._exhausted_until.clear()
            self._exhausted_until[level.key] = task.retry_at

    def forget_exhausted(self) -> None:
        """Forget which levels are exhausted: other limits are in force."""
        self._exhausted_until.clear()

    def park(self, task: PendingTask) -> None:
        """Park *task*."""
        self._actions.begin_waiting(task)
        self.parking.add(task)

    def hold_unparked(self, task: PendingTask, seconds: float) -> None:
        """Hold *task*, which could not be parked, for *seconds*."""
        if not self.can_start(task):
            return
        task.retry_at = self._monotonic() + seconds
        self._actions.hold(task, self._hold_queues.of(BACKLOG_FULL, None))

    def without_store(self, task: PendingTask) -> None:
        """Treat *task* as ``on_store_error`` says."""
        if self._local.on_store_error == "admit":
            self._actions.start(task)
        elif self._local.on_store_error != "refuse" or not self._actions.defer(task, max(1.0, self._breaker.pause)):
            task.retry_at = self._breaker.open_until
            self._actions.hold(task, self._hold_queues.of(STORE, None))

    def _must_ask_locally(self, task: PendingTask) -> bool:
        """Return whether this worker's own buckets must decide about *task*; if not, it was decided here."""
        policy = self._local.localized(task.policy)
        if policy is None:
            if not self._actions.defer(task, BEYOND_SHARE_COUNTDOWN):
                task.retry_at = self._monotonic() + BEYOND_SHARE_COUNTDOWN
                self._actions.hold(task, self._hold_queues.of(STORE, None))
            return False
        task.policy = policy
        queue = self._hold_queues.blocking(policy.path)
        if queue is not None:
            self._actions.hold(task, queue)
        return queue is None

    def _may_be_parked(self, task: PendingTask) -> bool:
        """Return whether an earlier delivery of *task* may have been parked; only parking it finds out."""
        return task.policy.parks and bool(task.redelivered) and self.parking.is_open

    def _pause(self, task: PendingTask) -> None:
        if task.policy.parks:
            self.park(task)
        elif self._actions.has_ended(task):
            return
        elif task.policy.paused in ("all", "queue") or not self._actions.defer_paused(task):
            task.retry_at = inf  # until other limits are in force
            self._actions.hold(task, self._hold_queues.of(PAUSED, None))
