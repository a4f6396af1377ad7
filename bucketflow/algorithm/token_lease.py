"""
Tokens taken ahead, to be spent without asking: how many may be held for how long. No clock, no lock, no I/O.

For everybody else a lease is a ``consume`` like any other, so their answers stay honest. But a bucket refills while
leased tokens lie unspent, and spent later they would come on top of a full bucket. So a lease fades while the bucket
gets the leased tokens again: from the instant at which it would have been full without them, by ``fill_rate``. These
stretches of time follow one another and never overlap, however many hold leases. So bucket and leases together never
hold more than the capacity, and nothing is lost: what faded is in the bucket.

Whoever settles a lease gives the rest back. But the bucket may not be full before the last stretch is over, the
``floor``: so while others hold later leases, there is room only for what was consumed after those. Settling the last
one takes its own stretch off. Holders that died are forgotten at the floor.

``lua/consume.lua`` mirrors the first half of this file; the second half is the holder's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow.algorithm import gcra as core
from bucketflow.algorithm.gcra import FULL, HALF_TICK
from bucketflow.limit import SECOND, Limit

__all__ = [
    "NONE",
    "Outstanding",
    "TokenLease",
    "available_to_lease",
    "entitlement",
    "lease",
    "outstanding_at",
    "refund",
    "settle",
]


@dataclass(frozen=True, slots=True)
class Outstanding:
    """
    What is out on lease from one bucket.

    Attributes:
        floor: The instant, in µs, before which the bucket must not be full again.
        tokens: As many were leased and not settled, by all holders.
    """

    floor: float
    tokens: float


#: Nobody holds a lease.
NONE = Outstanding(FULL, 0.0)


def outstanding_at(out: Outstanding, now: int) -> Outstanding:
    """Return what is out at *now*, in µs: from the floor on, nothing."""
    return out if out.floor > now else NONE


def available_to_lease(limit: Limit, full_at: float, now: int, most: float) -> float:
    """Return how many whole tokens there are to lease, at most *most*."""
    behind = full_at - now if full_at > now else 0.0
    return max(0.0, min(most, math.floor((limit.span + HALF_TICK - behind) * limit.fill_rate / SECOND)))


def lease(limit: Limit, full_at: float, out: Outstanding, now: int, tokens: float) -> tuple[float, float, Outstanding]:
    """
    TokenLease *tokens*. Whether they are there is :func:`available_to_lease`.

    Returns:
        The instant, in µs, until which the lease is whole; the bucket; and what is out then.
    """
    decays_from = max(float(now), full_at)
    full_at = decays_from + tokens * SECOND / limit.fill_rate
    return decays_from, full_at, Outstanding(full_at, out.tokens + tokens)


def entitlement(limit: Limit, tokens: float, decays_from: float, now: float) -> float:
    """Return how many of *tokens* leased may be held at *now*, in µs; they are whole until *decays_from*."""
    faded = (now - decays_from if now > decays_from else 0.0) * limit.fill_rate / SECOND
    return max(0.0, tokens - faded)


def settle(  # noqa: PLR0913, PLR0917 - a bucket, and a lease
    limit: Limit, full_at: float, out: Outstanding, now: int, tokens: float, decays_from: float, unspent: float
) -> tuple[float, Outstanding]:
    """
    End a lease of *tokens* of which *unspent* are left; return the bucket and what is still out.

    Args:
        limit: Of the bucket.
        full_at: The bucket, in µs.
        out: As :func:`outstanding_at` returns it. If nothing is, the lease has faded, or the server was emptied
            meanwhile.
        now: µs on the bucket's clock.
        tokens: As many were leased.
        decays_from: As :func:`lease` returned it.
        unspent: As many may go back.
    """
    ends_at = decays_from + tokens * SECOND / limit.fill_rate
    if out.tokens <= 0 or ends_at <= now:  # what is out may be of those who came after it had faded
        return full_at, out
    floor = decays_from if ends_at == out.floor else out.floor
    out = Outstanding(floor, out.tokens - tokens) if out.tokens > tokens else NONE
    return refund(limit, full_at, out, now, unspent), out


def refund(limit: Limit, full_at: float, out: Outstanding, now: int, cost: float) -> float:
    """Return the bucket with *cost* tokens more, but not full before the floor of what is *out*."""
    return max(out.floor, core.refund(limit, full_at, now, cost))


class TokenLease:
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
            min(before + cost, entitlement(limit, self.tokens, decays_from, now))
            for before, limit, decays_from in zip(unspent, self._path, self._whole, strict=True)
        ]
        taken = min([after - before for after, before in zip(held, unspent, strict=True)])
        self._keep([before + taken for before in unspent])
        return taken

    def unspent(self, now: int) -> list[float]:
        """Return how many tokens may go back at each level at *now*; length and order of the path."""
        unspent = [
            min(held - (left - self.left), entitlement(limit, self.tokens, decays_from, now))
            for (held, left), limit, decays_from in zip(self._unspent, self._path, self._whole, strict=True)
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
                decays_from + (self.tokens - held) * SECOND / limit.fill_rate
                for held, limit, decays_from in zip(unspent, self._path, self._whole, strict=True)
            ]
        )
