"""Which parked messages their broker has forgotten, so that the store need not remember that it has them. Pure."""

from __future__ import annotations

from collections import deque

__all__ = ["Confirming"]

#: Seconds after which the broker has surely heard that a message was acknowledged.
SURE = 5.0
#: Messages, and seconds, after which it is worth a call to say so.
MANY, LONG = 500, 10.0


class Confirming:
    """Messages that were acknowledged on one connection to the broker. A lost connection may take the last along."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[tuple[float, bytes]]] = {}

    def add(self, queue: str, uid: bytes, now: float) -> None:
        """Take note that the message *uid* of *queue* was acknowledged at *now*."""
        self._waiting.setdefault(queue, deque()).append((now, uid))

    def due(self, now: float) -> str | None:
        """Return a queue of which there is enough to tell."""
        for queue, waiting in self._waiting.items():
            if waiting and (now - waiting[0][0] > LONG or (len(waiting) > MANY and now - waiting[0][0] > SURE)):
                return queue
        return None

    def take(self, queue: str, now: float) -> tuple[bytes, ...]:
        """Return the messages of *queue* that the broker has forgotten, and forget them, too."""
        waiting, sure = self._waiting.get(queue, deque()), []
        while waiting and now - waiting[0][0] > SURE:
            sure.append(waiting.popleft()[1])
        return tuple(sure)
