"""
FIFO wait queue of one bucket, with a known grant time for each waiter.

The grant time of a waiter is computed from the bucket as the waiters ahead of it will leave it. Waiters do not retry,
no caller overtakes, and the wait of a new caller includes the whole queue.

When a waiter leaves, the waiters behind it move up together. Returning its tokens to the bucket instead would be wrong:
a new caller would take them while the waiters kept their grant times, and the limit would be exceeded.

The tokens of a waiter are taken when a call looks at the queue, not at the grant time. So callers that all wake late,
because the machine slept or an event loop was busy, are spaced out again instead of exceeding the limit in one burst.
A reservation is the exception, see :class:`Waiter`.

``bucketflow/local`` adds the lock, the clock and the sleeping.
"""

from __future__ import annotations

from collections.abc import Callable

from bucketflow.algorithm.gcra import FULL, refund, take, tokens_at, wait_for
from bucketflow.limit import Limit

__all__ = ["WaitQueue", "Waiter"]


class Waiter:
    """
    A caller that waits for *cost* tokens.

    Args:
        cost: Tokens, >= 0.
        wake: Called by the adapter, outside its lock, when the grant time moved earlier. Must not block.
        reserved: Whether the owner acts at the grant time without another call, as the holder of a reservation does.
            Its tokens then count as taken at the grant time, however late a call looks at the queue.

    Attributes:
        due_at: Grant time in µs; it moves when other waiters leave the queue.
        full_at: The bucket after the grant, in µs; see :mod:`bucketflow.algorithm.gcra`.
        granted: Whether the tokens were taken.
    """

    __slots__ = ("cost", "due_at", "full_at", "granted", "reserved", "wake")

    def __init__(self, cost: float, wake: Callable[[], object], *, reserved: bool = False) -> None:
        self.cost = cost
        self.wake = wake
        self.reserved = reserved
        self.due_at = 0
        self.full_at = FULL
        self.granted = False


class WaitQueue:
    """
    A bucket and its waiters.

    Args:
        limit: Of the bucket.
        full_at: The bucket at the start, in µs.

    Attributes:
        limit: As given.
        full_at: The bucket after everything granted so far, in µs; it does not include the tokens of waiters.
        waiters: In order of arrival.
    """

    __slots__ = ("full_at", "limit", "waiters")

    def __init__(self, limit: Limit, full_at: float = FULL) -> None:
        self.limit = limit
        self.full_at = full_at
        self.waiters: list[Waiter] = []

    def consume(self, now: int, cost: float) -> bool:
        """Take *cost* tokens unless they are missing or a waiter is ahead. A cost of 0 ignores the waiters."""
        if self.wait(now, cost):
            return False
        if cost:
            self.full_at = take(self.limit, self.full_at, now, cost)
        return True

    def wait(self, now: int, cost: float) -> int:
        """Return the µs until a new caller could take *cost* tokens, behind all waiters. A cost of 0 ignores them."""
        self.grant_due(now)
        if not self.waiters or not cost:
            return wait_for(self.limit, self.full_at, now, cost)
        last = self.waiters[-1]
        return max(last.due_at - now, wait_for(self.limit, last.full_at, now, cost))

    def tokens(self, now: int) -> float:
        """Return the tokens in the bucket, including those that waiters wait for."""
        self.grant_due(now)
        return tokens_at(self.limit, self.full_at, now)

    def join(self, waiter: Waiter, now: int) -> None:
        """Append *waiter* to the queue. Grant it at once if its tokens are there."""
        self.grant_due(now)
        self.waiters.append(waiter)
        self._recompute(len(self.waiters) - 1, now)
        self.grant_due(now)

    def grant_due(self, now: int) -> None:
        """Grant, in order, all waiters that are due by *now*."""
        while self.waiters and self.waiters[0].due_at <= now:
            waiter = self.waiters.pop(0)
            waiter.granted = True
            self.full_at = take(self.limit, self.full_at, waiter.due_at if waiter.reserved else now, waiter.cost)
            if self.full_at != waiter.full_at:  # so late that the bucket had overflowed meanwhile
                self._recompute(0, now)

    def cancel(self, waiter: Waiter, now: int) -> list[Waiter]:
        """
        Remove *waiter*, whose caller will not act on it. If it was granted, refund its tokens.

        Returns:
            The waiters whose grant time moved earlier, in order; the adapter must wake them.
        """
        if waiter in self.waiters:
            position = self.waiters.index(waiter)
            del self.waiters[position]
            return self._recompute(position, now)
        return self.refund(now, waiter.cost) if waiter.granted else []

    def refund(self, now: int, cost: float) -> list[Waiter]:
        """Add *cost* tokens, at most up to the capacity. Returns the same as :meth:`cancel`."""
        self.grant_due(now)
        self.full_at = refund(self.limit, self.full_at, now, cost)
        return self._recompute(0, now)

    def _recompute(self, position: int, now: int) -> list[Waiter]:
        """Compute the grant times from *position* on. Return the waiters whose grant time moved earlier."""
        due_at, full_at = now, self.full_at
        if position:
            due_at, full_at = self.waiters[position - 1].due_at, self.waiters[position - 1].full_at
        moved_up = []
        for waiter in self.waiters[position:]:
            previous = waiter.due_at
            waiter.due_at = due_at = max(due_at, now + wait_for(self.limit, full_at, now, waiter.cost))
            waiter.full_at = full_at = take(self.limit, full_at, due_at, waiter.cost)
            if due_at < previous:
                moved_up.append(waiter)
        return moved_up
