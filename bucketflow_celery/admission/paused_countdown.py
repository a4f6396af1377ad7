"""The countdown of a deferred task whose tenant or task type is paused."""

from __future__ import annotations

__all__ = ["PausedCountdown"]

#: Seconds: the shortest and the longest countdown where none ends early. A resumed task waits for the rest of it.
SHORTEST, LONGEST = 5.0, 60.0
#: The golden ratio: multiples of it, modulo 1, are spread evenly.
_GOLDEN_RATIO = 0.6180339887498949


class PausedCountdown:
    """
    Computes countdowns so that a long pause costs few deliveries, and the tasks do not return all at once.

    Args:
        longest: No countdown is longer, in seconds.
        ends_early: Whether the countdowns of a pause end with it. If not, they grow with the time that a task has
            waited, up to a minute.
    """

    def __init__(self, longest: float, *, ends_early: bool) -> None:
        self._longest = longest
        self._ends_early = ends_early
        self._phase = 0.0

    def after(self, waited: float) -> float:
        """Return the countdown, in seconds, of a task that has waited *waited* seconds."""
        longest = self._longest
        if not self._ends_early:
            longest = min(longest, LONGEST, max(SHORTEST, waited))
        self._phase = (self._phase + _GOLDEN_RATIO) % 1.0
        return longest * (1 + self._phase) / 2
