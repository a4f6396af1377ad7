"""The tasks that wait inside a worker, one queue a bucket. Pure bookkeeping: no clock, no Celery."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterator
from math import inf

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionRequest

__all__ = ["HoldQueue", "HoldQueues"]


class HoldQueue:
    """
    Those who wait for one bucket.

    Args:
        level: The level that binds; ``None`` for those who wait for the store to come back.
    """

    def __init__(self, level: Level | None) -> None:
        self.level = level
        self.tasks: deque[PendingTask] = deque()

    @property
    def sorted(self) -> bool:
        """Whether each task has a place of its own; else the queue has places, and whoever is its head uses them."""
        return self.level is not None and (not self.level.blocks_queue)

    @property
    def retry_at(self) -> float:
        """When its head may request."""
        return self.tasks[0].retry_at if self.tasks else inf

    def add(self, task: PendingTask) -> None:
        """Join at the end, or at one's place."""
        if self.level is not None and self.sorted:
            # By place, not by when they may request: of many who are due and find no tokens only the first requests
            # again.
            key = self.level.key
            insort(self.tasks, task, key=lambda other: other.reservations.get(key, 0))
        else:
            self.tasks.append(task)

    def put_back(self, tasks: list[PendingTask]) -> None:
        """Return *tasks*, in their order, to the front they were taken from."""
        if self.sorted:
            for task in tasks:
                self.add(task)
        else:
            self.tasks.extendleft(reversed(tasks))

    def take_ready(self, now: float, most: int) -> list[PendingTask]:
        """
        Take up to *most* tasks that may request.

        Behind the head come as many as tokens may have come for, and one more: its refusal tells when to request again.
        """
        if self.level is not None and self.tasks:
            late = max(0.0, now - self.tasks[0].retry_at)
            most = int(min(most, 2 + late * self.level.limit.fill_rate / max(self.tasks[0].policy.cost, 1e-9)))
        taken: list[PendingTask] = []
        while self.tasks and len(taken) < most and self.tasks[0].retry_at <= now:
            taken.append(self.tasks.popleft())
        return taken

    def wait_ahead(self, now: float) -> float:
        """Return the least seconds that who joins now will wait, as far as this worker can tell."""
        if self.level is None or not self.tasks:
            return 0.0
        tokens = sum(task.policy.cost for task in self.tasks)
        return max(0.0, self.retry_at - now) + (tokens - self.tasks[0].policy.cost) / self.level.limit.fill_rate


class HoldQueues:
    """All hold_queues of a worker, by key of the bucket that binds."""

    def __init__(self) -> None:
        self._hold_queues: dict[str, HoldQueue] = {}

    def __len__(self) -> int:
        return sum(len(queue.tasks) for queue in self._hold_queues.values())

    def __iter__(self) -> Iterator[PendingTask]:
        for queue in self._hold_queues.values():
            yield from queue.tasks

    def of(self, key: str, level: Level | None) -> HoldQueue:
        """Return the queue at *key*, a new one if need be."""
        return self._hold_queues.setdefault(key, HoldQueue(level))

    def blocking(self, path: tuple[Level, ...]) -> HoldQueue | None:
        """Return the queue that a newcomer on *path* must join: the first of ``all`` and its queue that has one."""
        for level in path:
            queue = None if (not level.blocks_queue) else self._hold_queues.get(level.key)
            if queue is not None and queue.tasks:
                return queue
        return None

    def ready(self, now: float) -> list[HoldQueue]:
        """Return the hold_queues whose head may request."""
        return [queue for queue in self._hold_queues.values() if queue.retry_at <= now]

    def next_ready_at(self) -> float:
        """Return when the first head may request; infinity if nobody waits."""
        return min((queue.retry_at for queue in self._hold_queues.values()), default=inf)

    def remove(self, gone: set[PendingTask]) -> None:
        """Take *gone* out of whatever queue they are in."""
        for queue in self._hold_queues.values():
            if any(task in gone for task in queue.tasks):
                queue.tasks = deque(task for task in queue.tasks if task not in gone)

    def wake(self, request: AdmissionRequest) -> None:
        """Let the heads of the queues in which *request* had a reservation ask at once: they inherit it."""
        for level, due in zip(request.path, request.reservations, strict=True):
            queue = self._hold_queues.get(level.key) if due and level.blocks_queue else None
            if queue is not None and queue.tasks:
                queue.tasks[0].retry_at = 0.0

    def prune(self) -> None:
        """Forget hold_queues that are empty."""
        self._hold_queues = {key: queue for key, queue in self._hold_queues.items() if queue.tasks}

    def clear(self) -> list[PendingTask]:
        """Empty every queue and return who stood there."""
        tasks = list(self)
        self._hold_queues.clear()
        return tasks
