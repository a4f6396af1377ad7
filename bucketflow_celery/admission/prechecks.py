"""What becomes of a task before the store is asked about it, where that is known: only the others must ask."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.interfaces import NoParking, Parking
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, check_cost
from bucketflow_celery.store.circuit_breaker import CircuitBreaker

__all__ = ["Prechecks"]

#: Seconds after which a task of a paused tenant that was sent back comes again.
PAUSE = 5.0
#: Most levels remembered as dry.
MAX_EXHAUSTED = 10_000
#: Keys of the hold_queues of those who wait for the store itself, to be parked, and for the end of a pause.
STORE, FULL, PAUSED = "", " full", " paused"


class Prechecks:
    """
    Sorts those who want to start.

    Args:
        hold_queues: Where those wait who stay in this worker.
        actions: Does to each of them what was decided.
        breaker: What to do while the store is away.
        monotonic: Returns the worker's time, in seconds.

    Attributes:
        room: Where tasks are parked.
    """

    def __init__(
        self, hold_queues: HoldQueues, actions: TaskActions, breaker: CircuitBreaker, monotonic: Callable[[], float]
    ) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._breaker = breaker
        self._monotonic = monotonic
        self._exhausted_until: dict[str, float] = {}  # of levels, by key, as those were told who were then parked
        self.room: Parking = NoParking()

    def can_start(self, task: PendingTask) -> bool:
        """Return whether *task* can ever start under these limits; if not, it has failed."""
        if self._may_be_parked(task):
            return True  # it may have run under other limits: only parking it can tell, and fails it at its turn
        try:
            check_cost(task.policy.path, task.policy.cost)
        except CostExceedsCapacity as error:
            self._actions.give_up(task, error)
            return False
        return True

    def must_ask(self, task: PendingTask, now: float) -> bool:
        """Return whether the store decides about *task*; if not, that is done."""
        policy = task.policy
        if self._may_be_parked(task):
            self.park(task)
        elif policy.paused is not None:
            self._pause(task)
        elif not policy.path:
            self._actions.start(task)
        elif self._breaker.until > now:
            self.without_store(task)
        elif policy.parks and self.blocks(task, now):
            self.park(task)
        elif not policy.parks and (blocked := self._hold_queues.blocking(policy.path)) is not None:
            self._actions.join(task, blocked)
        else:
            return True
        return False

    def blocks(self, task: PendingTask, now: float) -> bool:
        """Return whether *task* would wait in any case: for its tenant's backlog, or for a level that told when."""
        if self.room.blocks(task):
            return True
        if task.policy.max_wait is not None:
            return False  # only an answer tells whether that would be too long; then it fails at once
        return any(self._exhausted_until.get(level.key, now) > now for level in task.policy.path)

    def mark_exhausted(self, level: Level, seconds: float) -> None:
        """Take note that *level* will have no tokens for so many seconds."""
        if len(self._exhausted_until) >= MAX_EXHAUSTED:
            self._exhausted_until.clear()
        self._exhausted_until[level.key] = self._monotonic() + seconds

    def forget(self) -> None:
        """Forget which levels are dry: other limits are in force."""
        self._exhausted_until.clear()

    def park(self, task: PendingTask) -> None:
        """Let *task* be parked."""
        self._actions.waited(task)
        self.room.add(task)

    def keep(self, task: PendingTask, seconds: float) -> None:
        """Hold an task that could not be parked, for so many seconds."""
        if not self.can_start(task):
            return  # it cannot be parked at all, so it was not
        task.retry_at = self._monotonic() + seconds
        self._actions.join(task, self._hold_queues.of(FULL, None))

    def without_store(self, task: PendingTask) -> None:
        """Do with *task* what is to be done while the store is away."""
        if self._breaker.policy == "admit":
            self._actions.start(task)
        elif self._breaker.policy != "refuse" or not self._actions.defer(task, max(1.0, self._breaker.pause)):
            task.retry_at = self._breaker.until
            self._actions.join(task, self._hold_queues.of(STORE, None))

    def _may_be_parked(self, task: PendingTask) -> bool:
        return task.policy.parks and self.room.may_have(task)

    def _pause(self, task: PendingTask) -> None:
        if task.policy.parks:
            self.park(task)
        elif task.policy.paused in ("all", "queue") or not self._actions.defer(task, PAUSE):
            task.retry_at = inf  # until other limits are in force
            self._actions.join(task, self._hold_queues.of(PAUSED, None))
