"""When a worker polls the backlog of each queue: when the store said so, after a notification, or periodically."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from bucketflow_celery.scheduling.model import TenantSummary
from bucketflow_celery.store.interfaces import ALL_QUEUES

__all__ = ["POLL_INTERVAL", "PollSchedule", "QueuePolls"]

#: Seconds after which a worker polls without a reason: a notification may have been lost.
POLL_INTERVAL = 5.0


@dataclass(slots=True)
class QueuePolls:
    """
    The polls of the backlog of one queue. Times are in seconds of the monotonic clock.

    Attributes:
        name: Of the queue.
        poll_at: When to poll next; infinity if there is no reason to.
        polled_at: When the last poll was sent.
        is_expected: Whether the store expects the next poll at that time, and notifies no other worker.
        tenants: The tenants that may be served next, as the store last named them.
        tasks: All parked task types, likewise.
    """

    name: str
    poll_at: float = inf
    polled_at: float = -inf
    is_expected: bool = False
    tenants: tuple[TenantSummary, ...] = ()
    tasks: tuple[str, ...] = ()

    def due_at(self, interval: float) -> float:
        """Return when to poll at the latest, if polls are at most *interval* seconds apart."""
        return min(self.poll_at, self.polled_at + interval)

    def is_due(self, now: float, interval: float, *, has_slot: bool) -> bool:
        """Return whether to poll at *now*. Without a free slot only an expected poll is sent, to cancel it."""
        return self.due_at(interval) <= now and (has_slot or (self.is_expected and self.poll_at <= now))

    def sent(self, now: float) -> None:
        """Record that a poll was sent at *now*."""
        self.polled_at, self.poll_at, self.is_expected = now, inf, False

    def retry_at(self, at: float) -> None:
        """Poll again at *at*."""
        self.poll_at = at

    def schedule(self, at: float, *, is_expected: bool) -> None:
        """Poll at *at*, as the store said, or earlier if a notification came meanwhile."""
        self.poll_at = min(self.poll_at, at)
        self.is_expected = is_expected


class PollSchedule:
    """The polls of all queues that a worker consumes."""

    def __init__(self) -> None:
        self._queues: dict[str, QueuePolls] = {}
        self._interval = POLL_INTERVAL
        self._notified: deque[str] = deque()

    def notify(self, name: str) -> None:
        """Record a notification for the queue *name*, or ``ALL_QUEUES``. Any thread may call."""
        self._notified.append(name)

    def update(self, consumed: Sequence[str], now: float) -> bool:
        """Follow the queues now *consumed* and apply notifications; return whether one was for ``ALL_QUEUES``."""
        if self._queues.keys() != set(consumed):
            self._queues = {name: self._queues.get(name, QueuePolls(name)) for name in consumed}
            self._interval = POLL_INTERVAL * max(1.0, len(consumed) / 2)  # many queues are not polled more often in sum
        notified_all = False
        while self._notified:
            notified = self._notified.popleft()
            notified_all = notified_all or notified == ALL_QUEUES
            for queue in self._queues.values():
                if notified in (queue.name, ALL_QUEUES):
                    queue.poll_at = min(queue.poll_at, now)
        return notified_all

    def poll_now(self, name: str, now: float) -> None:
        """Poll the queue *name* as soon as a slot is free, if it is consumed."""
        if name in self._queues:
            self._queues[name].retry_at(now)

    def next_poll_at(self) -> float:
        """Return when to poll next; infinity without queues."""
        return min((queue.due_at(self._interval) for queue in self._queues.values()), default=inf)

    def due(self, now: float, free: int) -> QueuePolls | None:
        """Return a queue to poll at *now* with *free* slots; the others come first next time."""
        for queue in self._queues.values():
            if queue.is_due(now, self._interval, has_slot=free > 0):
                self._queues[queue.name] = self._queues.pop(queue.name)
                return queue
        return None
