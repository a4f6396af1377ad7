"""Token bucket for the threads of one process."""

from __future__ import annotations

import threading

from bucketflow.algorithm.wait_queue import Waiter
from bucketflow.local.base import Bucket
from bucketflow.local.fast_path import DISABLED
from bucketflow.validation import check_timeout

__all__ = ["TokenBucket"]


class TokenBucket(Bucket):
    """
    A token bucket that threads share.

    In every window of ``w`` seconds it grants at most ``capacity + fill_rate × w`` tokens.

    Args:
        capacity: Most tokens the bucket holds: the burst. Above 0.
        fill_rate: Tokens per second. Above 0.
        initial_tokens: Tokens at the start, 0 to *capacity*; by default full.
        clock: Source of the time; ``bucketflow.testing.FakeClock`` in tests.
        name: Name of the bucket in errors.

    Raises:
        ConfigError: An argument is not a number, or out of its range. The error names the argument.
    """

    _KIND = "TokenBucket"

    @property
    def tokens(self) -> float:
        """Tokens in the bucket now."""
        return self._tokens()

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens*, all or none.

        Blocked callers are served in order of arrival, and no other caller overtakes them. They sleep outside the
        lock. A caller that is refused or interrupted spends nothing, and the callers behind it move up.

        Args:
            tokens: Tokens to take, >= 0; 0 takes none.
            block: Whether to wait for them.
            timeout: Most seconds to wait; ``None``: no limit. A caller that would wait longer is refused at once: its
                wait is known, and only a refund or a cancellation could shorten it.

        Returns:
            Whether the tokens were taken.

        Raises:
            ConfigError: *tokens* or *timeout* is not a number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: *tokens* is above the capacity, so the call would wait for ever.
        """
        if timeout is not None:
            timeout = check_timeout(timeout, block=block)
        unchecked, refill, pop, slot, read, scale, tolerance = self._fast_path
        if tokens is not unchecked:
            refill = self._refill_time(tokens)
            pop = pop if refill else DISABLED  # a cost of 0 takes nothing
        # Without waiters the state is in slot, and the caller that pops it owns it; see FastPathState. The block is
        # gcra.wait_for and gcra.take in one step, operation for operation; a test holds the results equal. Adding
        # 2**52 and subtracting it again rounds to whole µs.
        try:
            for full_at in pop:
                try:
                    now = read() * scale + 2.0**52 - 2.0**52
                    deficit = full_at - now + refill if full_at > now else refill
                    if deficit <= tolerance:
                        full_at = now + deficit  # noqa: PLW2901 - the new state
                        return True
                    break
                finally:
                    slot.append(full_at)
        except IndexError:
            if self._consume(float(tokens)):
                return True
        return block and self._wait(float(tokens), timeout)

    def _wait(self, cost: float, timeout: float | None) -> bool:
        wake = threading.Event()
        waiter = Waiter(cost, wake.set)
        try:
            deadline = self._join(waiter, timeout)
            while (left := self._time_left(waiter, deadline)) is not None:
                self._clock.sleep(left, wake)
                wake.clear()  # before the next check, so that a later change of the grant time wakes the thread again
        except BaseException:  # also KeyboardInterrupt: an interrupted caller must not keep its position
            self._cancel(waiter)
            raise
        if not waiter.granted:
            self._cancel(waiter)
        return waiter.granted
