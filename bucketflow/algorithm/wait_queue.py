"""
The line in front of one bucket: who waits, in which order, until when. No clock, no lock, no I/O.

Everything that must happen under a shell's lock is here; the shells only lock, sleep and wake.

Each claim knows the instant at which its tokens will be there, reckoned from the bucket as the claims ahead will
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

__all__ = ["Claim", "Line"]


class Claim:
    """
    One who waits for *cost* tokens.

    Args:
        cost: Tokens, >= 0.
        wake: Called by the shell, outside its lock, when the claim's instant came nearer. Must not block.
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


class Line:
    """
    A bucket and those who wait for it.

    Args:
        limit: Of the bucket.
        full_at: The bucket at the start, in µs.

    Attributes:
        limit: As given.
        full_at: The bucket after everything granted so far; what claims will take is not in it yet.
        claims: Who waits, first come first.
        idle: ``[full_at]`` for quick callers, or nothing, see :class:`bucketflow.local.fast_path.Guarded`.
    """

    __slots__ = ("_take", "_taken", "claims", "full_at", "idle", "limit")

    def __init__(self, limit: Limit, full_at: float = FULL) -> None:
        self.limit = limit
        self.full_at = full_at
        self.claims: list[Claim] = []
        self.idle = [full_at]
        self._take = iter(self.idle.pop, math.nan)  # quick_way.taking, which is no arithmetic
        self._taken = False

    def take_up(self) -> bool:
        """See :class:`bucketflow.local.fast_path.Guarded`."""
        if not self._taken:
            try:
                for full_at in self._take:
                    self.full_at, self._taken = full_at, True
                    break
            except IndexError:
                return False
        return True

    def lay_down(self) -> None:
        """See :class:`bucketflow.local.fast_path.Guarded`."""
        if not self.claims:
            self._taken = False
            self.idle.append(self.full_at)

    def consume(self, now: int, cost: float) -> bool:
        """Take *cost* tokens unless they are not there or somebody waits for them. 0 tokens are for everybody."""
        if self.wait(now, cost):
            return False
        if cost:
            self.full_at = take(self.limit, self.full_at, now, cost)
        return True

    def wait(self, now: int, cost: float) -> int:
        """Return the µs until a newcomer could take *cost* tokens: behind the line, unless it only looks."""
        self.settle(now)
        if not self.claims or not cost:
            return wait_for(self.limit, self.full_at, now, cost)
        last = self.claims[-1]
        return max(last.at - now, wait_for(self.limit, last.full_at, now, cost))

    def tokens(self, now: int) -> float:
        """Return the tokens in the bucket, those that somebody waits for included."""
        self.settle(now)
        return tokens_at(self.limit, self.full_at, now)

    def join(self, claim: Claim, now: int) -> None:
        """Put *claim* at the end of the line; if its tokens are there, it is granted at once."""
        self.settle(now)
        self.claims.append(claim)
        self._reckon(len(self.claims) - 1, now)
        self.settle(now)

    def settle(self, now: int) -> None:
        """Grant, in order, whatever is due by *now*."""
        while self.claims and self.claims[0].at <= now:
            claim = self.claims.pop(0)
            claim.granted = True
            self.full_at = take(self.limit, self.full_at, claim.at if claim.promised else now, claim.cost)
            if self.full_at != claim.full_at:  # so late that the bucket had overflowed meanwhile
                self._reckon(0, now)

    def abandon(self, claim: Claim, now: int) -> list[Claim]:
        """
        Undo *claim* for a caller who will not act on it: give its place back, or its tokens if it had them.

        Returns:
            The claims whose instant came nearer, for the shell to wake; in order.
        """
        if claim in self.claims:
            place = self.claims.index(claim)
            del self.claims[place]
            return self._reckon(place, now)
        return self.refund(now, claim.cost) if claim.granted else []

    def refund(self, now: int, cost: float) -> list[Claim]:
        """Give *cost* tokens back, never above the capacity. Returns as :meth:`abandon` does."""
        self.settle(now)
        self.full_at = refund(self.limit, self.full_at, now, cost)
        return self._reckon(0, now)

    def _reckon(self, place: int, now: int) -> list[Claim]:
        """Reckon the instants from *place* on; return the claims whose instant came nearer."""
        at, full_at = now, self.full_at
        if place:
            at, full_at = self.claims[place - 1].at, self.claims[place - 1].full_at
        nearer = []
        for claim in self.claims[place:]:
            before = claim.at
            claim.at = at = max(at, now + wait_for(self.limit, full_at, now, claim.cost))
            claim.full_at = full_at = take(self.limit, full_at, at, claim.cost)
            if at < before:
                nearer.append(claim)
        return nearer
