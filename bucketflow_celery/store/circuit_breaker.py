"""How long to leave a store alone that did not answer. Pure."""

from __future__ import annotations

__all__ = ["CircuitBreaker"]

#: Seconds before the first question after a failure; doubled with each further one.
FIRST = 0.5
#: Most seconds between two.
LONGEST = 10.0


class CircuitBreaker:
    """
    The state of the connection to the store.

    Args:
        policy: ``"hold"``, ``"admit"`` or ``"refuse"``: what becomes of tasks meanwhile.
    """

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.pause = 0.0
        self._until = 0.0

    @property
    def until(self) -> float:
        """When the store may be asked again, in seconds of the monotonic clock; 0 while it answers."""
        return self._until

    def failed(self, now: float) -> bool:
        """Take note of a failure at *now*; return whether it is the first of its outage."""
        first = self.pause == 0
        self.pause = FIRST if first else min(2 * self.pause, LONGEST)
        self._until = now + self.pause
        return first

    def recovered(self) -> bool:
        """Take note of an answer; return whether it ended an outage."""
        was_away = self.pause > 0
        self.pause = self._until = 0.0
        return was_away
