"""
Adaptive spinning: poll briefly before blocking on a reply.

Putting a thread to sleep and waking it takes the processor longer than a round trip to a server on the same machine.
"""

from __future__ import annotations

from collections.abc import Callable

from bucketflow.clock import monotonic

__all__ = ["SPIN_TIMEOUT", "SpinWait"]

#: Seconds for which a wait polls. A server on the same machine answers sooner, one across a network does not.
SPIN_TIMEOUT = 0.0001

#: Maximum number of consecutive waits that skip polling.
_MAX_SKIPPED = 255


class SpinWait:
    """
    Polls only while polling pays off: exponential back-off after misses, up to 255 skipped waits.

    A spin hits if the reply arrives while it polls. It misses if the reply takes longer than :data:`SPIN_TIMEOUT`.
    It also misses if the reply is there at the first poll: then the server runs on this processor, and blocking
    costs nothing. A miss raises the number of skipped waits from n to 2n + 1, a hit halves it.

    Args:
        clock: Returns seconds.
    """

    __slots__ = ("_clock", "_skip_count", "_to_skip")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._skip_count = 0  # waits that skip polling between two that poll
        self._to_skip = 0  # how many of those are left

    def wait(self, is_ready: Callable[[], object]) -> None:
        """
        Poll *is_ready* until it is true, or return early if the caller had better block.

        Raises what *is_ready* raises.
        """
        if self._to_skip > 0:
            self._to_skip -= 1
            return
        hit = not is_ready() and self._spin(is_ready)
        self._skip_count = self._skip_count // 2 if hit else min(2 * self._skip_count + 1, _MAX_SKIPPED)
        self._to_skip = self._skip_count

    def _spin(self, is_ready: Callable[[], object]) -> bool:
        # Without sched_yield: on a busy machine it costs the rest of a time slice.
        ends_at = self._clock() + SPIN_TIMEOUT
        while not is_ready():
            if self._clock() >= ends_at:
                return False
        return True
