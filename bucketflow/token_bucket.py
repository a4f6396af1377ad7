"""The token bucket for one process: any number of threads, one lock."""

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
        capacity: Most tokens it holds: the burst.
        fill_rate: Tokens per second.
        initial_tokens: Tokens at the start, 0 to *capacity*; by default full.
        clock: Where the time comes from; ``bucketflow.testing.FakeClock`` in tests.
        name: What errors call it.

    Raises:
        ConfigError: A number is not one, or out of its range; it names the argument.
    """

    _KIND = "TokenBucket"

    @property
    def tokens(self) -> float:
        """Tokens in the bucket now."""
        return self._tokens()

    def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens*, all or none.

        Blocked callers are served in the order in which they came, and nobody else is served before them. They
        sleep outside the lock. Whoever is refused or interrupted has spent nothing, and those behind move up.

        Args:
            tokens: How many; 0 only looks.
            block: Whether to wait for them.
            timeout: Seconds to wait at most; ``None``: as long as it takes. Whoever would wait longer is refused at
                once: the line is known, and only a refund or a cancellation could shorten it.

        Returns:
            Whether they were taken.

        Raises:
            ConfigError: *tokens* or *timeout* is no number of 0 or more, or *timeout* is given without *block*.
            CostExceedsCapacity: More than the bucket can ever hold; it would wait for ever.
        """
        if timeout is not None:
            check_timeout(timeout, block=block)
        one, step, take, slot, read, scale, most = self._fast_path
        if tokens is not one:
            step = self._step_of(tokens)
            take = take if step else DISABLED  # 0 only looks
        # While nobody waits, the bucket's state lies in a list. Whoever pops it has the bucket to himself; who finds
        # none asks under the lock, see quick_way.FastPathState. Then core.wait_for and core.take in one step,
        # operation for
        # operation, and held against them by a test. Adding 2**52 and popping it away rounds to whole µs.
        try:
            for full_at in take:
                try:
                    now = read() * scale + 2.0**52 - 2.0**52
                    behind = full_at - now + step if full_at > now else step
                    if behind <= most:
                        full_at = now + behind  # noqa: PLW2901 - it goes back
                        return True
                    break
                finally:
                    slot.append(full_at)
        except IndexError:
            if self._consume(tokens):
                return True
        return block and self._wait(tokens, timeout)

    def _wait(self, cost: float, timeout: float | None) -> bool:
        wake = threading.Event()
        waiter = Waiter(cost, wake.set)
        try:
            deadline = self._join(waiter, timeout)
            while (left := self._left(waiter, deadline)) is not None:
                self._clock.sleep(left, wake)
                wake.clear()  # before looking again: whatever moves the waiter from here on wakes it again
        except BaseException:  # also KeyboardInterrupt: it must not leave a hole in the line
            self._abandon(waiter)
            raise
        if not waiter.granted:
            self._abandon(waiter)
        return waiter.granted
