"""
Bound on what a worker holds for tenants and task types under ``on_limit="hold"``; what is more goes back to the broker.

A hold queue may grow while it is shorter than the room that is left in the worker. So one tenant takes at most half of
the room, and there is always some for another one. It may also grow only while its last task is due in time: a message
that is held for longer than ``max_hold`` would be requeued and lose its reservation.

A task without room goes to the end of its queue, so that the tasks behind it can start, and other workers share. It is
not asked for, and reserves nothing: it would not be back in its turn. If it is more urgent than a held task, or has
waited for longer, it takes that one's place, and the other goes. Once a task has been sent back it makes further trips
at a slow pace.

Where the broker keeps deferred tasks (quorum queues), a task without room is deferred with its reservation instead.

Source: Choudhury and Hahne, "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998.
"""

from __future__ import annotations

from collections import deque
from math import inf
from typing import NamedTuple

from bucketflow_celery.admission.actions import TaskActions
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.interfaces import Worker
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.refusal import Refusal, exceeds_max_wait
from bucketflow_celery.config.levels import Level

__all__ = ["Overflow", "take_place"]

#: Key of the hold queue of tasks that are about to go back.
RETURNING = " returning"
#: Share of ``max_hold`` within which a task must be due to be held.
HORIZON = 0.9
#: Least seconds between two returns by one worker of tasks that were sent back before.
RETURN_INTERVAL = 0.01
#: Least seconds between two returns of one task; and their largest share of ``max_hold``, in which it waits for them.
TRIP_INTERVAL, TRIP_SHARE = 2.0, 0.05
#: Most levels remembered as crowded.
MAX_CROWDED = 10_000


class _Crowd(NamedTuple):
    """
    What leaves no room for a task.

    Attributes:
        level: The level that would hold it.
        wait: A lower bound of its wait in seconds.
        queue: The hold queue of the level; ``None``: its reservations are too far ahead for any task.
    """

    level: Level
    wait: float
    queue: HoldQueue | None = None


class Overflow:
    """
    Sends tasks back for which there is no room.

    Args:
        hold_queues: Of the worker.
        actions: Acts on each task.
        worker: The worker.
    """

    def __init__(self, hold_queues: HoldQueues, actions: TaskActions, worker: Worker) -> None:
        self._hold_queues = hold_queues
        self._actions = actions
        self._worker = worker
        self._max_countdown = actions.wait_limits.max_countdown
        self._trip_interval = min(TRIP_INTERVAL, TRIP_SHARE * actions.wait_limits.max_hold)
        self._horizon = HORIZON * actions.wait_limits.max_hold
        self._crowded_until: dict[str, float] = {}  # by key of the level, as refusals said
        self._next_return_at = 0.0

    def takes(self, task: PendingTask, origin: HoldQueue | None = None) -> bool:
        """
        Return whether *task* need not be asked for: it has no room here, and goes back or fails.

        Args:
            task: The task.
            origin: The hold queue that it was taken from; ``None`` if it was not held.
        """
        if task.policy.on_limit != "hold" or not self._worker.keeps_deferred:
            return False
        level = None if origin is None else origin.level
        if level is not None and not level.blocks_queue:
            self._recall(level)
            return False
        is_due = task.returns_at is not None and task.returns_at <= self._worker.monotonic()
        crowd = self._crowd(task)
        if is_due or crowd is None:
            task.returns_at = None
        if is_due and task.reservations:  # it was asked for before it came to wait here
            return self._actions.defer(task, 0.0)
        if crowd is None:
            return False
        if self._actions.has_ended(task) or self._fails(task, crowd):
            return True
        return self._go(task, crowd.queue, is_due=is_due)

    def takes_refused(self, task: PendingTask, refusal: Refusal) -> bool:
        """Return whether there is no room for *task*, which was refused: it goes back with its reservation."""
        level, wait = refusal.level, refusal.wait
        if task.policy.on_limit != "hold" or level.blocks_queue:
            return False
        is_far = wait > self._horizon
        if not is_far and self._room() > 0:
            return False
        if not self._worker.keeps_deferred:
            return self._actions.defer(task, min(wait, self._max_countdown))
        if is_far:
            if len(self._crowded_until) >= MAX_CROWDED:
                self._crowded_until.clear()
            self._crowded_until[level.key] = self._worker.monotonic() + wait - self._horizon
        return self._send_back(task)

    def forget_crowded(self) -> None:
        """Forget which levels are crowded: other limits are in force."""
        self._crowded_until.clear()

    def _room(self) -> float:
        return self._worker.hold_limit - self._hold_queues.held_by_levels()

    def _crowd(self, task: PendingTask) -> _Crowd | None:
        if task.reservations or self._worker.hold_limit == inf:
            return None
        now, room = self._worker.monotonic(), None
        for level in task.policy.path:
            if level.blocks_queue:
                continue
            if self._crowded_until.get(level.key, now) > now:
                return _Crowd(level, self._horizon)
            queue = self._hold_queues.find(level.key)
            if queue is None or not queue.tasks:
                continue
            room = self._room() if room is None else room
            wait = max(0.0, queue.tasks[-1].retry_at - now)
            if len(queue.tasks) >= room or wait > self._horizon:
                return _Crowd(level, wait, queue)
        return None

    def _fails(self, task: PendingTask, crowd: _Crowd) -> bool:
        waited = self._actions.begin_waiting(task)
        failure = exceeds_max_wait(task.policy, crowd.level, waited + crowd.wait)
        if failure is not None:
            self._actions.fail(task, failure.error)
        return failure is not None

    def _go(self, task: PendingTask, queue: HoldQueue | None, *, is_due: bool) -> bool:
        youngest = None if queue is None else take_place(queue, task)
        leaving = task if youngest is None else youngest
        if queue is not None and youngest is not None:
            self._actions.leave(youngest)
            self._actions.hold(task, queue)
        has_left = self._actions.defer(leaving, 0.0) if is_due else self._send_back(leaving)
        if queue is not None and youngest is not None and not has_left:
            self._actions.hold(youngest, queue)
        return has_left or youngest is not None

    def _send_back(self, task: PendingTask) -> bool:
        now = self._worker.monotonic()
        if task.returned_at is None:  # every message makes the first trip at once: others may stand behind it
            return self._actions.defer(task, 0.0)
        if task.returns_at is None:
            since_return = self._worker.time() - task.returned_at
            task.returns_at = max(now, self._next_return_at, now + self._trip_interval - since_return)
            self._next_return_at = task.returns_at + RETURN_INTERVAL
        task.retry_at = task.returns_at
        self._actions.hold(task, self._hold_queues.of(RETURNING, None))
        return True

    def _recall(self, level: Level) -> None:
        """Look at a task of *level* that is about to go back: one that was held is about to leave room."""
        queue = self._hold_queues.find(RETURNING)
        for task in () if queue is None else list(queue.tasks):
            if queue is not None and not task.reservations and level in task.policy.path:
                queue.tasks.remove(task)
                task.retry_at = 0.0
                queue.tasks.appendleft(task)
                return


def take_place(queue: HoldQueue, task: PendingTask) -> PendingTask | None:
    """
    Give *task* the place of the last of the tasks that wait in *queue* for the same, if it comes before that one.

    The last is the one that began to wait last, of those of the least urgent rank. All others keep their order, and use
    the same reservations. *task* is not added to the queue.

    Returns:
        The last task, which was removed and has no reservations any more; ``None``: nothing has changed.
    """
    policy, level = task.policy, queue.level
    # Of the same cost, because a reservation stands for the time in which the level earns it.
    peers = [one for one in queue.tasks if (one.policy.path, one.policy.cost) == (policy.path, policy.cost)]
    last = max(peers, key=_precedence, default=None)
    if last is None or level is None or _precedence(last) <= _precedence(task):
        return None
    places = [(one.reservations, one.retry_at) for one in peers]
    peers[peers.index(last)] = task
    for one, (reservations, retry_at) in zip(sorted(peers, key=_precedence), places, strict=True):
        one.reservations, one.retry_at, one.places = reservations, retry_at, {}
    last.reservations, last.retry_at, last.places = {}, 0.0, {}
    remaining = (one for one in queue.tasks if one is not last)
    queue.tasks = deque(sorted(remaining, key=lambda one: one.reservations.get(level.key, 0)))
    return last


def _precedence(task: PendingTask) -> tuple[int, float]:
    return task.rank, inf if task.waiting_since is None else task.waiting_since
