"""Which queue's backlog a worker asks for tasks next, and when: told to, called, or because it was long ago. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from bucketflow_celery.scheduling.model import TenantSummary
from bucketflow_celery.store.interfaces import ALL_QUEUES

__all__ = ["POLL_INTERVAL", "PollSchedule", "QueuePolls"]

#: Seconds after which a worker asks that was neither told to nor called: a call may have been missed.
POLL_INTERVAL = 5.0


@dataclass(slots=True)
class QueuePolls:
    """
    What is known of the backlog of one queue. Times are in seconds of the monotonic clock.

    Attributes:
        name: Of the queue.
        poll_at: When to ask for tasks, as far as the worker was told or called.
        polled_at: When it asked last.
        is_expected: Whether the store expects it then: it was given a turn.
        known: The tenants that may be next.
    """

    name: str
    poll_at: float = inf
    polled_at: float = -inf
    is_expected: bool = False
    known: tuple[TenantSummary, ...] = ()

    def due_at(self, look: float) -> float:
        """Return when to ask at the latest, if each *look* seconds are worth a question."""
        return min(self.poll_at, self.polled_at + look)


class PollSchedule:
    """The queues that a worker consumes, by when it asks for their tasks."""

    def __init__(self) -> None:
        self._queues: dict[str, QueuePolls] = {}
        self._calls: deque[str] = deque()

    def call(self, name: str) -> None:
        """Take note that there is something to do in the queue *name*, or ``ALL_QUEUES``. Any thread may call."""
        self._calls.append(name)

    def update(self, consumed: Sequence[str], now: float) -> bool:
        """Follow the queues now *consumed*, and act on the calls; return whether one was for ``ALL_QUEUES``."""
        if set(consumed) != set(self._queues):
            self._queues = {name: self._queues.get(name, QueuePolls(name)) for name in consumed}
        is_for_every = False
        while self._calls:
            called = self._calls.popleft()
            is_for_every = is_for_every or called == ALL_QUEUES
            for queue in self._queues.values():
                if called in (queue.name, ALL_QUEUES):
                    queue.poll_at = min(queue.poll_at, now)
        return is_for_every

    def poll_now(self, name: str, now: float) -> None:
        """AdmissionRequest for tasks of the queue *name* as soon as a slot is free, if it is consumed."""
        if name in self._queues:
            self._queues[name].poll_at = now

    def next_at(self) -> float:
        """Return when to ask next; infinity without queues."""
        return min((queue.due_at(self._interval) for queue in self._queues.values()), default=inf)

    def due(self, now: float, free: int) -> QueuePolls | None:
        """Return a queue to ask for tasks now, with so many slots *free*; the others come first next time."""
        for queue in self._queues.values():
            # Who cannot come when its turn has come says so, and another is called.
            if queue.due_at(self._interval) <= now and (free > 0 or (queue.is_expected and queue.poll_at <= now)):
                self._queues[queue.name] = self._queues.pop(queue.name)
                return queue
        return None

    @property
    def _interval(self) -> float:
        return POLL_INTERVAL * max(1.0, len(self._queues) / 2)  # many queues are not looked at more often, all in all
