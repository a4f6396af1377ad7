"""
The line in front of one bucket: who waits, in which order, until when. No clock, no lock, no I/O.

Everything that must happen under a shell's lock is here; the shells only lock, sleep and wake.

Each waiter knows the instant at which its tokens will be there, reckoned from the bucket as the waiters ahead will
leave it. Nobody asks twice, nobody overtakes, and a newcomer's wait is honest because it counts the whole line. When
one leaves, those behind move up together: were the tokens given back to the bucket instead, a newcomer would take
them while the others kept their instants, and more than the limit would be granted.

A waiting caller's tokens are taken when somebody looks, not at the instant itself. So callers who all wake late,
because the machine slept or an event loop was busy, come apart again instead of bursting past the limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from bucketflow.algorithm.gcra import FULL, refund, take, tokens_at, wait_for
from bucketflow.limit import Limit

__all__ = ["WaitQueue", "Waiter"]


class Waiter:
    """
    One who waits for *cost* tokens.

    Args:
        cost: Tokens, >= 0.
        wake: Called by the shell, outside its lock, when the waiter's instant came nearer. Must not block.
        promised: Whether the owner acts at the instant without asking again, as the holder of a reservation does.

    Attributes:
        at: µs at which the tokens will be there; it moves when others leave the line.
        full_at: The bucket after them, see :mod:`bucketflow.algorithm.gcra`.
        granted: Whether the tokens were taken.
    """

    __slots__ = ("at", "cost", "full_at", "granted", "promised", "wake")

    def __init__(self, cost: float, wake: Callable[[], object], *, promised: bool = False) -> None:
        self.cost = cost
        self.wake = wake
        self.promised = promised
        self.at = 0
        self.full_at = FULL
        self.granted = False


class WaitQueue:
    """
    A bucket and those who wait for it.

    Args:
        limit: Of the bucket.
        full_at: The bucket at the start, in µs.

    Attributes:
        limit: As given.
        full_at: The bucket after everything granted so far; what waiters will take is not in it yet.
        waiters: Who waits, first come first.
        slot: ``[full_at]`` for quick callers, or nothing, see :class:`bucketflow.local.fast_path.FastPathState`.
    """

    __slots__ = ("_take", "_taken", "full_at", "limit", "slot", "waiters")

    def __init__(self, limit: Limit, full_at: float = FULL) -> None:
        self.limit = limit
        self.full_at = full_at
        self.waiters: list[Waiter] = []
        self.slot = [full_at]
        self._take = iter(self.slot.pop, math.nan)  # quick_way.popping, which is no arithmetic
        self._taken = False

    def acquire(self) -> bool:
        """See :class:`bucketflow.local.fast_path.FastPathState`."""
        if not self._taken:
            try:
                for full_at in self._take:
                    self.full_at, self._taken = full_at, True
                    break
            except IndexError:
                return False
        return True

    def release(self) -> None:
        """See :class:`bucketflow.local.fast_path.FastPathState`."""
        if not self.waiters:
            self._taken = False
            self.slot.append(self.full_at)

    def consume(self, now: int, cost: float) -> bool:
        """Take *cost* tokens unless they are not there or somebody waits for them. 0 tokens are for everybody."""
        if self.wait(now, cost):
            return False
        if cost:
            self.full_at = take(self.limit, self.full_at, now, cost)
        return True

    def wait(self, now: int, cost: float) -> int:
        """Return the µs until a newcomer could take *cost* tokens: behind the line, unless it only looks."""
        self.grant_due(now)
        if not self.waiters or not cost:
            return wait_for(self.limit, self.full_at, now, cost)
        last = self.waiters[-1]
        return max(last.at - now, wait_for(self.limit, last.full_at, now, cost))

    def tokens(self, now: int) -> float:
        """Return the tokens in the bucket, those that somebody waits for included."""
        self.grant_due(now)
        return tokens_at(self.limit, self.full_at, now)

    def join(self, waiter: Waiter, now: int) -> None:
        """Put *waiter* at the end of the line; if its tokens are there, it is granted at once."""
        self.grant_due(now)
        self.waiters.append(waiter)
        self._recompute(len(self.waiters) - 1, now)
        self.grant_due(now)

    def grant_due(self, now: int) -> None:
        """Grant, in order, whatever is due by *now*."""
        while self.waiters and self.waiters[0].at <= now:
            waiter = self.waiters.pop(0)
            waiter.granted = True
            self.full_at = take(self.limit, self.full_at, waiter.at if waiter.promised else now, waiter.cost)
            if self.full_at != waiter.full_at:  # so late that the bucket had overflowed meanwhile
                self._recompute(0, now)

    def cancel(self, waiter: Waiter, now: int) -> list[Waiter]:
        """
        Undo *waiter* for a caller who will not act on it: give its place back, or its tokens if it had them.

        Returns:
            The waiters whose instant came nearer, for the shell to wake; in order.
        """
        if waiter in self.waiters:
            place = self.waiters.index(waiter)
            del self.waiters[place]
            return self._recompute(place, now)
        return self.refund(now, waiter.cost) if waiter.granted else []

    def refund(self, now: int, cost: float) -> list[Waiter]:
        """Give *cost* tokens back, never above the capacity. Returns as :meth:`abandon` does."""
        self.grant_due(now)
        self.full_at = refund(self.limit, self.full_at, now, cost)
        return self._recompute(0, now)

    def _recompute(self, place: int, now: int) -> list[Waiter]:
        """Reckon the instants from *place* on; return the waiters whose instant came nearer."""
        at, full_at = now, self.full_at
        if place:
            at, full_at = self.waiters[place - 1].at, self.waiters[place - 1].full_at
        nearer = []
        for waiter in self.waiters[place:]:
            before = waiter.at
            waiter.at = at = max(at, now + wait_for(self.limit, full_at, now, waiter.cost))
            waiter.full_at = full_at = take(self.limit, full_at, at, waiter.cost)
            if at < before:
                nearer.append(waiter)
        return nearer
