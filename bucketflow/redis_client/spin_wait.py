"""Wait awake for what comes at once: to fall asleep and be woken up takes a processor longer than such a wait."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["SPIN_TIMEOUT", "SpinWait"]

#: Seconds that a wait stays awake: a server on the same machine answers sooner, one across a network does not.
SPIN_TIMEOUT = 0.0001

#: Most waits in a row that go to sleep at once.
_MOST_SKIPPED = 255


class SpinWait:
    """
    Decides which waits stay awake: after one that was of no use twice as many sleep at once as before, at most 255.

    It is of use if the answer comes meanwhile. It is of none if that takes longer than :data:`SPIN_TIMEOUT`, nor if
    the answer is there at once: then the server runs on this processor, and sleeping costs nothing.

    Args:
        clock: Returns seconds.
    """

    __slots__ = ("_clock", "_skipping", "_to_skip")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._skipping = 0  # waits that sleep between two that stay awake
        self._to_skip = 0  # of which are still to come

    def wait(self, is_ready: Callable[[], object]) -> None:
        """
        Return once *is_ready*, or as soon as it is better to sleep until then.

        Raises what *is_ready* raises.
        """
        if self._to_skip > 0:
            self._to_skip -= 1
            return
        hit = not is_ready() and self._spin(is_ready)
        self._skipping = self._skipping // 2 if hit else min(2 * self._skipping + 1, _MOST_SKIPPED)
        self._to_skip = self._skipping

    def _spin(self, is_ready: Callable[[], object]) -> bool:
        # Without sched_yield: on a busy machine that costs the rest of a time slice.
        ends_at = self._clock() + SPIN_TIMEOUT
        while not is_ready():
            if self._clock() >= ends_at:
                return False
        return True
