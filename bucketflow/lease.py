"""
Tokens taken ahead, to be spent without asking: how many may be held for how long. No clock, no lock, no I/O.

For everybody else a lease is a ``consume`` like any other, so their answers stay honest. But a bucket refills while
leased tokens lie unspent, and spent later they would come on top of a full bucket. So a lease is whole only until its
bucket, reckoned without all that is out on lease, would be full; from then on it fades by ``fill_rate``, as fast as the
bucket gets tokens. What faded is in the bucket again. So bucket and leases together never hold more than the capacity:
with ``out`` tokens out and the bucket at ``full_at``, that instant is ``full_at - out / fill_rate``. It only moves
on, so what is out is at most ``out`` less what has come since.

Whoever settles a lease gives the rest back. Refunds stop at the ``floor``: below it the bucket would be full before the
leases have faded. A holder that died is forgotten at the floor, at the latest.

``lua/consume.lua`` mirrors the first half of this file; the second half is the holder's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow import core
from bucketflow.core import FULL, HALF_TICK, take
from bucketflow.limit import SECOND, Limit

__all__ = ["NONE", "Lease", "Out", "leasable", "lease", "refund", "right", "settle", "still_out", "whole_until"]


@dataclass(frozen=True, slots=True)
class Out:
    """
    What is out on lease from one bucket.

    Attributes:
        floor: The instant, in µs, before which the bucket must not be full again.
        tokens: At most so many are held, by all holders.
    """

    floor: float
    tokens: float


#: Nobody holds a lease.
NONE = Out(FULL, 0.0)


def still_out(limit: Limit, out: Out, now: int) -> Out:
    """Return what is out at *now*: what faded is not."""
    return Out(out.floor, max(0.0, min(out.tokens, (out.floor - now) * limit.fill_rate / SECOND)))


def whole_until(limit: Limit, out: Out) -> float:
    """Return the instant, in µs, until which nothing fades."""
    return out.floor - out.tokens * SECOND / limit.fill_rate


def right(limit: Limit, tokens: float, whole_at: float, now: float) -> float:
    """Return how many of *tokens* leased may be held at *now*, in µs; they are whole until *whole_at*."""
    faded = (now - whole_at if now > whole_at else 0.0) * limit.fill_rate / SECOND
    return max(0.0, tokens - faded)


def settle(  # noqa: PLR0913, PLR0917 - a bucket, and a lease
    limit: Limit, full_at: float, out: Out, now: int, tokens: float, whole_at: float, unspent: float
) -> tuple[float, Out]:
    """
    End a lease of *tokens* of which *unspent* are left; return the bucket and what is still out.

    Args:
        limit: Of the bucket.
        full_at: The bucket, in µs.
        out: As :func:`still_out` returns it.
        now: µs on the bucket's clock.
        tokens: As many were leased.
        whole_at: :func:`whole_until` right after they were.
        unspent: As many may go back.
    """
    ended = min(out.tokens, right(limit, tokens, whole_at, now))
    left = Out(out.floor - ended * SECOND / limit.fill_rate, out.tokens - ended)
    # Where less is out than was leased, the bucket is another one: the server was emptied meanwhile.
    return refund(limit, full_at, left, now, min(unspent, ended)), left


def refund(limit: Limit, full_at: float, out: Out, now: int, cost: float) -> float:
    """Return the bucket with *cost* tokens more: at most its capacity, less what is still *out*."""
    floor = out.floor if out.tokens > 0 else FULL
    return max(floor, core.refund(limit, full_at, now, cost))


def leasable(limit: Limit, full_at: float, now: int, most: float) -> float:
    """Return how many whole tokens there are to lease, at most *most*."""
    behind = full_at - now if full_at > now else 0.0
    return max(0.0, min(most, math.floor((limit.span + HALF_TICK - behind) * limit.fill_rate / SECOND)))


def lease(limit: Limit, full_at: float, out: Out, now: int, tokens: float) -> tuple[float, Out]:
    """Return the bucket with *tokens* leased, and what is out then. Whether they are there is :func:`leasable`."""
    full_at = take(limit, full_at, now, tokens)
    return full_at, Out(full_at, out.tokens + tokens)


class Lease:
    """
    What one process holds.

    Args:
        tokens: As many were leased.
        path: Limits, root first; length = depth >= 1.
        whole: µs on the holder's clock at which the lease begins to fade at each level; same length and order.

    Attributes:
        tokens: As given.
        left: As many may be spent, unless some have faded.
        whole_until: µs on the holder's clock until which none has, even if nobody spends.
    """

    __slots__ = ("_path", "_unspent", "_whole", "left", "tokens", "whole_until")

    def __init__(self, tokens: float, path: Sequence[Limit], whole: Sequence[float]) -> None:
        self.tokens = tokens
        self._path = path
        self._whole = whole
        self._keep([tokens] * len(path))

    def spend(self, now: int, cost: float) -> bool:
        """Spend *cost* tokens at *now*, µs on the holder's clock, if they are there."""
        if now > self.whole_until:
            self.unspent(now)
        if self.left < cost:
            return False
        self.left -= cost
        return True

    def refund(self, now: int, cost: float) -> float:
        """Take up to *cost* tokens back that were spent in vain, at *now*; return how many there was room for."""
        unspent = self.unspent(now)
        held = [
            min(before + cost, right(limit, self.tokens, whole_at, now))
            for before, limit, whole_at in zip(unspent, self._path, self._whole, strict=True)
        ]
        taken = min([after - before for after, before in zip(held, unspent, strict=True)])
        self._keep([before + taken for before in unspent])
        return taken

    def unspent(self, now: int) -> list[float]:
        """Return how many tokens may go back at each level at *now*; length and order of the path."""
        unspent = [
            min(held - (left - self.left), right(limit, self.tokens, whole_at, now))
            for (held, left), limit, whole_at in zip(self._unspent, self._path, self._whole, strict=True)
        ]
        self._keep(unspent)
        return unspent

    def _keep(self, unspent: Sequence[float]) -> None:
        self.left = min(unspent)
        # Of each level, when as many were left: a level fades at its own pace.
        self._unspent = [(held, self.left) for held in unspent]
        # What was spent fades first.
        self.whole_until = min(
            [
                whole_at + (self.tokens - held) * SECOND / limit.fill_rate
                for held, limit, whole_at in zip(unspent, self._path, self._whole, strict=True)
            ]
        )
