"""Circuit breaker for the store, with exponential back-off."""

from __future__ import annotations

__all__ = ["FIRST_PAUSE", "LONGEST_PAUSE", "CircuitBreaker"]

#: Seconds that the breaker stays open after the first failure; doubled with each further one.
FIRST_PAUSE = 0.5
#: Longest time in seconds that it stays open, by default.
LONGEST_PAUSE = 10.0


class CircuitBreaker:
    """
    Open after a failure until its pause has passed; the next call is the half-open probe.

    Source: M. Nygard, "Release It!", chapter "Circuit Breaker".

    Attributes:
        pause: Seconds of the current pause; 0 while the breaker is closed.
        open_until: When the store may be called again, in seconds of the monotonic clock; 0 while it is closed.
        longest_pause: Longest pause in seconds.
    """

    __slots__ = ("longest_pause", "open_until", "pause")

    def __init__(self) -> None:
        self.longest_pause = LONGEST_PAUSE
        self.pause = 0.0
        self.open_until = 0.0

    def record_failure(self, now: float) -> bool:
        """Open the breaker at *now*, for twice as long as before; return whether it was closed."""
        was_closed = self.pause == 0
        self.pause = FIRST_PAUSE if was_closed else min(2 * self.pause, self.longest_pause)
        self.open_until = now + self.pause
        return was_closed

    def record_success(self) -> bool:
        """Close the breaker; return whether it was open."""
        was_open = self.pause > 0
        self.pause = self.open_until = 0.0
        return was_open
