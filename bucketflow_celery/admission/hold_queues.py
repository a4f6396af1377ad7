"""Hold queues: the tasks that wait inside a worker, one queue a bucket, and their reservations."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable, Iterator
from math import inf
from operator import attrgetter

from bucketflow.limit import SECOND
from bucketflow_celery.admission.local_limits import is_local
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import NO_DEADLINE, AdmissionDecision, AdmissionRequest

__all__ = ["HoldQueue", "HoldQueues"]

#: The ``max_wait_us`` of a task that is parked when it is refused: no wait is short enough for a reservation.
NO_RESERVATION = -1


class HoldQueue:
    """
    The tasks that wait for one bucket.

    At ``all`` and at a queue it is ordered by rank, then first in, first out, and the hold queue owns the reservations.
    If its head leaves for any reason, the next task uses them. At a tenant or a task type each task has a reservation
    of its own, and the queue is ordered by these.

    Args:
        level: The level that binds; ``None`` for tasks that wait for the store.

    Attributes:
        level: As given.
        tasks: The tasks, head first.
        reservations: Of the queue, sorted, in µs of the store's clock. At most a few: each request takes one.
        is_mixed: Whether a task may be more urgent than one with an earlier reservation.
    """

    def __init__(self, level: Level | None) -> None:
        self.level = level
        self.tasks: deque[PendingTask] = deque()
        self.reservations: list[int] = []
        self.is_mixed = False

    @property
    def retry_at(self) -> float:
        """When to ask for the head, in seconds of the monotonic clock; infinity if there is none."""
        return self.tasks[0].retry_at if self.tasks else inf

    def add(self, task: PendingTask) -> None:
        """Append *task* to those of its rank, or insert it by its reservation."""
        level, tasks = self.level, self.tasks
        if level is None or level.blocks_queue:
            if tasks and task.rank < tasks[0].rank and not task.retry_at:
                task.retry_at = tasks[0].retry_at  # the head knows when tokens come
            insort(tasks, task, key=attrgetter("rank"))
        else:
            self.is_mixed = bool(task.places) or (bool(tasks) and (self.is_mixed or task.rank != tasks[0].rank))
            # Not by retry_at: of many tasks that are due and find no tokens, only the first asks again.
            insort(tasks, task, key=lambda other: other.reservations.get(level.key, 0))

    def put_back(self, tasks: list[PendingTask]) -> None:
        """Return *tasks*, in their order, to the front of those of their rank, or by their reservations."""
        if self.level is None or self.level.blocks_queue:
            for task in reversed(tasks):
                self.tasks.insert(bisect_left(self.tasks, task.rank, key=attrgetter("rank")), task)
        else:
            for task in tasks:
                self.add(task)

    def more_urgent(self, due: PendingTask, before: float) -> PendingTask | None:
        """
        Return the most urgent task that may exchange its reservation for that of *due*; ``None``: there is none.

        Args:
            due: A task with a reservation at this level.
            before: The latest instant at which it may be due again, in seconds of the monotonic clock.
        """
        key = self.level.key if self.level is not None else ""
        reservation, precedence = due.reservations[key], due.precedence(key)
        # Of the same cost, because a reservation stands for the time in which the level earns it.
        candidates = [
            task
            for task in self.tasks
            if task.reservations.get(key, 0) > reservation
            and task.precedence(key) < precedence
            and task.policy.cost == due.policy.cost
            and task.retry_at <= before
        ]
        return min(candidates, key=lambda task: task.precedence(key), default=None)

    def take_ready(self, now: float, limit: int) -> list[PendingTask]:
        """
        Take the tasks to ask for at *now*, at most *limit*.

        Besides the head these are as many as tokens may have come for, and one more: its refusal tells when to ask
        again.
        """
        if self.level is not None and self.tasks:
            late = max(0.0, now - self.tasks[0].retry_at)
            limit = int(min(limit, 2 + late * self.level.limit.fill_rate / max(self.tasks[0].policy.cost, 1e-9)))
        taken: list[PendingTask] = []
        while self.tasks and len(taken) < limit and self.tasks[0].retry_at <= now:
            taken.append(self.tasks.popleft())
        return taken

    def wait_ahead(self, now: float, rank: int = 0) -> float:
        """Return a lower bound in seconds of the wait of a task of *rank* that joins at *now*."""
        if self.level is None or not self.tasks:
            return 0.0
        costs = [task.policy.cost for task in self.tasks if task.rank <= rank]
        return max(0.0, self.retry_at - now) + sum(costs[1:]) / self.level.limit.fill_rate


class HoldQueues:
    """All hold queues of a worker, by key of the bucket that binds."""

    def __init__(self) -> None:
        self._queues: dict[str, HoldQueue] = {}

    def __len__(self) -> int:
        return sum(len(queue.tasks) for queue in self._queues.values())

    def __iter__(self) -> Iterator[PendingTask]:
        for queue in self._queues.values():
            yield from queue.tasks

    def of(self, key: str, level: Level | None) -> HoldQueue:
        """Return the queue at *key*, a new one if need be; *level* as in :class:`HoldQueue`."""
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = HoldQueue(level)
        queue.level = level  # its limit may have changed
        return queue

    def find(self, key: str) -> HoldQueue | None:
        """Return the queue at *key*, if there is one."""
        return self._queues.get(key)

    def held_by_levels(self) -> int:
        """Return the number of tasks that tenants and task types hold."""
        return sum(
            len(queue.tasks)
            for queue in self._queues.values()
            if queue.level is not None and not queue.level.blocks_queue
        )

    def blocking(self, path: tuple[Level, ...]) -> HoldQueue | None:
        """Return the queue that a new task on *path* must join: the first of ``all`` and its queue that holds tasks."""
        for level in path:
            queue = self._queues.get(level.key) if level.blocks_queue else None
            if queue is not None and queue.tasks:
                return queue
        return None

    def mixed(self, level: Level, task: PendingTask) -> HoldQueue | None:
        """Return the queue at *level*, a tenant or task type, if it may hold a task that is more urgent than *task*."""
        queue = self._queues.get(level.key) if not level.blocks_queue else None
        if queue is None or not queue.tasks or not (queue.is_mixed or queue.tasks[0].rank < task.rank):
            return None
        return queue

    def by_level(self) -> list[tuple[Level | None, PendingTask]]:
        """Return each task, and the level of its queue. Any thread may call."""
        return [(queue.level, task) for queue in list(self._queues.values()) for task in list(queue.tasks)]

    def ready(self, now: float) -> list[HoldQueue]:
        """Return the queues whose head is to be asked for at *now*."""
        return [queue for queue in self._queues.values() if queue.retry_at <= now]

    def next_retry_at(self, after: float = -inf) -> float:
        """Return when to ask for the next head that is due later than *after*; infinity if there is none."""
        return min((queue.retry_at for queue in self._queues.values() if queue.retry_at > after), default=inf)

    def request(self, task: PendingTask, waited: float) -> AdmissionRequest:
        """
        Return the admission request of *task*; it takes the first reservation of each queue on its path.

        Args:
            task: The task.
            waited: Seconds it has waited so far.
        """
        policy = task.policy
        path, cost = policy.path, policy.cost
        if policy.parks:
            return AdmissionRequest(path, cost, (0,) * len(path), NO_RESERVATION, task.queue, policy.tenant or "")
        reservations = tuple(
            [self._take(level.key) if level.blocks_queue else task.reservations.get(level.key, 0) for level in path]
        )
        if policy.max_wait is None and task.expires_at is None:
            return AdmissionRequest(path, cost, reservations)
        max_wait_us = max(0, round(min(task.patience(waited) * SECOND, NO_DEADLINE)))
        return AdmissionRequest(path, cost, reservations, max_wait_us)

    def keep(self, task: PendingTask, decision: AdmissionDecision) -> None:
        """Keep the reservations of a task that was refused: its own with *task*, the others with their queues."""
        for level, reservation in zip(task.policy.path, decision.reservations, strict=True):
            if reservation and not level.blocks_queue:
                task.reservations[level.key] = reservation
        self._put_back(task.policy.path, decision.reservations)

    def restore(self, requests: Iterable[AdmissionRequest]) -> None:
        """Return the reservations that unanswered *requests* took."""
        for request in requests:
            self._put_back(request.path, request.reservations)

    def wake(self, request: AdmissionRequest) -> None:
        """Ask at once for the heads of the queues in which *request* had a reservation: its task has left them."""
        for level, reservation in zip(request.path, request.reservations, strict=True):
            queue = self._queues.get(level.key) if reservation and level.blocks_queue else None
            if queue is not None and queue.tasks:
                queue.tasks[0].retry_at = 0.0

    def remove(self, gone: set[PendingTask]) -> None:
        """Remove the tasks in *gone*."""
        for queue in self._queues.values() if gone else ():
            if any(task in gone for task in queue.tasks):
                queue.tasks = deque(task for task in queue.tasks if task not in gone)

    def prune(self) -> None:
        """Forget queues that have neither tasks nor reservations."""
        self._queues = {key: queue for key, queue in self._queues.items() if queue.tasks or queue.reservations}

    def clear(self) -> list[PendingTask]:
        """Remove all tasks and return them. Reservations stay, except for those in this worker's own buckets."""
        tasks = list(self)
        self._queues = {key: queue for key, queue in self._queues.items() if not is_local(key)}
        for queue in self._queues.values():
            queue.tasks.clear()
        return tasks

    def _put_back(self, path: tuple[Level, ...], reservations: tuple[int, ...]) -> None:
        for level, reservation in zip(path, reservations, strict=True):
            if reservation and level.blocks_queue:
                insort(self.of(level.key, level).reservations, reservation)

    def _take(self, key: str) -> int:
        queue = self._queues.get(key)
        return queue.reservations.pop(0) if queue is not None and queue.reservations else 0
