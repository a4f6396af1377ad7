"""Returns tasks to the broker that have been in this worker for too long: unacknowledged, or without a free slot."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from math import inf

from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueues
from bucketflow_celery.admission.interfaces import WaitLimits, Worker
from bucketflow_celery.admission.pending_task import PendingTask

__all__ = ["MAX_SLOT_WAIT", "SWEEP_INTERVAL", "OverdueTasks"]

#: Seconds that a due task waits for a slot of this worker: then another worker may have one.
MAX_SLOT_WAIT = 0.1
#: Seconds between two checks for tasks that have been here too long.
SWEEP_INTERVAL = 1.0
#: Seconds until a task is passed on again that the broker did not accept, or whose queue is long.
PASS_ON_PAUSE = 1.0


class OverdueTasks:
    """
    Finds and returns the overdue tasks of a worker.

    Args:
        inbox: The received tasks that were not asked for yet. Other threads append to it at any time.
        hold_queues: Of the worker.
        actions: Acts on each task.
        worker: The worker.
        wait_limits: The longest waits outside of the queue.

    Attributes:
        slot_seen_at: When a slot of this worker was free last, in seconds of the monotonic clock.
        next_sweep: When to look for tasks that have been here too long, in seconds of the monotonic clock.
    """

    def __init__(
        self,
        inbox: deque[PendingTask],
        hold_queues: HoldQueues,
        actions: TaskActions,
        worker: Worker,
        wait_limits: WaitLimits,
    ) -> None:
        self._inbox = inbox
        self._hold_queues = hold_queues
        self._actions = actions
        self._worker = worker
        self._wait_limits = wait_limits
        self._pass_on_from = -inf
        self.slot_seen_at = -inf
        self.next_sweep = 0.0

    def work(self, now: float) -> None:
        """Return the tasks that are overdue at *now*, on the monotonic clock, and end the revoked ones."""
        if now >= self.next_sweep:
            self._sweep(now)
        if self._worker.free() <= 0 and now >= max(self._pass_on_from, self.slot_seen_at + MAX_SLOT_WAIT):
            self._pass_on_late(now)

    def _sweep(self, now: float) -> None:
        self.next_sweep = now + SWEEP_INTERVAL
        self._return_held([task for task in self._hold_queues if task.reservations], self._actions.has_ended)
        held = [task for task in self._hold_queues if self._is_overdue(task, now, self._wait_limits.max_hold)]
        self._return_held(held, self._actions.requeue)
        self._return_from_inbox(lambda task: self._is_overdue(task, now, inf), self._actions.requeue)

    def _pass_on_late(self, now: float) -> None:
        late = [task for task in self._due_and_held(now) if self._pass_on_at(task) <= now]
        self._return_held(late, self._pass_on)
        self._return_from_inbox(lambda task: task.can_go_elsewhere and self._pass_on_at(task) <= now, self._pass_on)

    def next_work_at(self, now: float) -> float:
        """Return when to call :meth:`work` next."""
        return self.next_sweep if self._worker.free() > 0 else min(self.next_sweep, self._next_pass_on_at(now))

    def _next_pass_on_at(self, now: float) -> float:
        waiting = [task for task in list(self._inbox) if task.can_go_elsewhere]  # other threads append
        first = min(map(self._pass_on_at, [*waiting, *self._due_and_held(now)]), default=inf)
        becomes_due = self._hold_queues.next_retry_at(after=now)
        earliest = max(self._pass_on_from, self.slot_seen_at + MAX_SLOT_WAIT)
        return max(earliest, min(first, becomes_due + MAX_SLOT_WAIT))

    def _due_and_held(self, now: float) -> Iterator[PendingTask]:
        for queue in self._hold_queues.ready(now):
            if queue.level is not None and not queue.level.blocks_queue:
                due = takewhile(lambda task: task.retry_at <= now, queue.tasks)
                yield from [task for task in due if task.can_go_elsewhere]

    def _pass_on_at(self, task: PendingTask) -> float:
        """
        Return when to pass on *task*: it waits here for half of the time for which it was late when it came.

        So a task that no worker has a slot for makes few trips, and one that another worker has a slot for finds it.
        """
        now = self._worker.monotonic()
        slot_wait = task.slot_wait(now)
        late = 0.0 if task.due_since is None else self._worker.time() - task.due_since - slot_wait
        return now - slot_wait + max(MAX_SLOT_WAIT, late / 2)

    def _is_overdue(self, task: PendingTask, now: float, max_wait: float) -> bool:
        return now - task.received_at > max_wait or self._actions.is_overdue(task)

    def _pass_on(self, task: PendingTask) -> bool:
        # Behind a long queue it would be late, and while there is one, every worker with a free slot has work.
        is_passed_on = self._worker.queueing_delay(task.queue) <= MAX_SLOT_WAIT and self._actions.pass_on(task)
        if not is_passed_on:
            self._pass_on_from = self._worker.monotonic() + PASS_ON_PAUSE
        return is_passed_on

    def _return_held(self, tasks: list[PendingTask], leave: Callable[[PendingTask], bool]) -> None:
        self._hold_queues.remove({task for task in tasks if leave(task)})

    def _return_from_inbox(
        self, is_overdue: Callable[[PendingTask], bool], leave: Callable[[PendingTask], bool]
    ) -> None:
        staying: list[PendingTask] = []
        try:
            while self._inbox:
                task = self._inbox.popleft()
                if not is_overdue(task) or not leave(task):
                    staying.append(task)
        finally:  # an error with one task must not lose the others
            self._inbox.extendleft(reversed(staying))
