"""Which queue's backlog a worker asks for tasks next, and when: told to, called, or because it was long ago. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from bucketflow_celery.scheduling.model import Known
from bucketflow_celery.store.interfaces import EVERY_QUEUE

__all__ = ["LOOK", "Agenda", "Queue"]

#: Seconds after which a worker asks that was neither told to nor called: a call may have been missed.
LOOK = 5.0


@dataclass(slots=True)
class Queue:
    """
    What is known of the backlog of one queue. Times are in seconds of the monotonic clock.

    Attributes:
        name: Of the queue.
        ask_at: When to ask for tasks, as far as the worker was told or called.
        asked_at: When it asked last.
        has_turn: Whether the store expects it then: it was given a turn.
        known: The tenants that may be next.
    """

    name: str
    ask_at: float = inf
    asked_at: float = -inf
    has_turn: bool = False
    known: tuple[Known, ...] = ()

    def due_at(self, look: float) -> float:
        """Return when to ask at the latest, if each *look* seconds are worth a question."""
        return min(self.ask_at, self.asked_at + look)


class Agenda:
    """The queues that a worker consumes, by when it asks for their tasks."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._calls: deque[str] = deque()

    def call(self, name: str) -> None:
        """Take note that there is something to do in the queue *name*, or ``EVERY_QUEUE``. Any thread may call."""
        self._calls.append(name)

    def update(self, consumed: Sequence[str], now: float) -> bool:
        """Follow the queues now *consumed*, and act on the calls; return whether one was for ``EVERY_QUEUE``."""
        if set(consumed) != set(self._queues):
            self._queues = {name: self._queues.get(name, Queue(name)) for name in consumed}
        is_for_every = False
        while self._calls:
            called = self._calls.popleft()
            is_for_every = is_for_every or called == EVERY_QUEUE
            for queue in self._queues.values():
                if called in (queue.name, EVERY_QUEUE):
                    queue.ask_at = min(queue.ask_at, now)
        return is_for_every

    def ask_now(self, name: str, now: float) -> None:
        """Ask for tasks of the queue *name* as soon as a slot is free, if it is consumed."""
        if name in self._queues:
            self._queues[name].ask_at = now

    def next_at(self) -> float:
        """Return when to ask next; infinity without queues."""
        return min((queue.due_at(self._look) for queue in self._queues.values()), default=inf)

    def due(self, now: float, free: int) -> Queue | None:
        """Return a queue to ask for tasks now, with so many slots *free*; the others come first next time."""
        for queue in self._queues.values():
            # Who cannot come when its turn has come says so, and another is called.
            if queue.due_at(self._look) <= now and (free > 0 or (queue.has_turn and queue.ask_at <= now)):
                self._queues[queue.name] = self._queues.pop(queue.name)
                return queue
        return None

    @property
    def _look(self) -> float:
        return LOOK * max(1.0, len(self._queues) / 2)  # many queues are not looked at more often, all in all
