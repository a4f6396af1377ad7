"""
Token leases: tokens that a process takes from a bucket in advance and spends without calls to the server.

To other callers a lease is an ordinary ``consume``, so their answers stay exact. But the bucket refills while leased
tokens are unspent. Without decay, the leased tokens and a full bucket together would exceed the limit. So a lease loses
tokens at ``fill_rate``, from the instant at which the bucket would be full without the lease.

Settling a lease returns its unspent tokens. The bucket must not be full before the ``floor``, so not all of them may
have room. While other processes hold later leases, there is room only for tokens consumed after those leases. Settling
the last lease moves the floor back by the decay period of that lease. A lease whose holder died expires at the floor.

**Invariants**

- The decay periods of all leases of a bucket follow one another and never overlap. The floor is the end of the last.
- Bucket and leases together never hold more than the capacity.
- No token is lost: what decayed is in the bucket.

``lua/consume.lua`` and ``lua/refund.lua`` mirror the functions of this module. :class:`TokenLease` is the side of the
holder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow.algorithm import gcra
from bucketflow.algorithm.gcra import FULL, HALF_TICK
from bucketflow.limit import SECOND, Limit

__all__ = [
    "NO_LEASES",
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
    The unsettled leases of one bucket.

    Attributes:
        floor: The instant, in µs, before which the bucket must not be full again.
        tokens: Leased tokens of all holders.
    """

    floor: float
    tokens: float


#: A bucket without leases.
NO_LEASES = Outstanding(FULL, 0.0)


def outstanding_at(out: Outstanding, now: int) -> Outstanding:
    """Return the leases that are outstanding at *now*, in µs: none from the floor on."""
    return out if out.floor > now else NO_LEASES


def available_to_lease(limit: Limit, full_at: float, now: int, most: float) -> float:
    """Return the whole tokens that can be leased, at most *most*."""
    deficit = full_at - now if full_at > now else 0.0
    return max(0.0, min(most, math.floor((limit.span + HALF_TICK - deficit) * limit.fill_rate / SECOND)))


def lease(limit: Limit, full_at: float, out: Outstanding, now: int, tokens: float) -> tuple[float, float, Outstanding]:
    """
    Lease *tokens*. Does not check that they are there, see :func:`available_to_lease`.

    Returns:
        The instant, in µs, from which the lease decays; the new state of the bucket; the new outstanding leases.
    """
    decays_from = max(float(now), full_at)
    full_at = decays_from + tokens * SECOND / limit.fill_rate
    return decays_from, full_at, Outstanding(full_at, out.tokens + tokens)


def entitlement(limit: Limit, tokens: float, decays_from: float, now: float) -> float:
    """Return how many of *tokens* leased may be held at *now*. They decay from *decays_from* on; both are in µs."""
    decayed = (now - decays_from if now > decays_from else 0.0) * limit.fill_rate / SECOND
    return max(0.0, tokens - decayed)


def settle(  # noqa: PLR0913, PLR0917 - a bucket, and a lease
    limit: Limit, full_at: float, out: Outstanding, now: int, tokens: float, decays_from: float, unspent: float
) -> tuple[float, Outstanding]:
    """
    End a lease, and return its unspent tokens to the bucket.

    Args:
        limit: Of the bucket.
        full_at: State of the bucket, in µs.
        out: As :func:`outstanding_at` returns it. If it is empty, the lease has decayed, or the server lost its data.
        now: µs on the clock of the bucket.
        tokens: Tokens that were leased.
        decays_from: As :func:`lease` returned it.
        unspent: Tokens to return.

    Returns:
        The new state of the bucket, and the leases that are still outstanding.
    """
    ends_at = decays_from + tokens * SECOND / limit.fill_rate
    if out.tokens <= 0 or ends_at <= now:  # decayed: the outstanding leases may be later ones, of other holders
        return full_at, out
    floor = decays_from if ends_at == out.floor else out.floor
    out = Outstanding(floor, out.tokens - tokens) if out.tokens > tokens else NO_LEASES
    return refund(limit, full_at, out, now, unspent), out


def refund(limit: Limit, full_at: float, out: Outstanding, now: int, cost: float) -> float:
    """Return the state with *cost* tokens more, but not full before the floor of the outstanding leases."""
    return max(out.floor, gcra.refund(limit, full_at, now, cost))


class TokenLease:
    """
    A lease on a path of buckets, as its holder spends it.

    Args:
        tokens: Tokens leased at each level.
        path: Limits, root first; length = depth >= 1.
        decays_from: µs on the holder's clock from which the lease decays at each level; same length and order.

    Attributes:
        tokens: As given.
        left: Tokens that can be spent, unless some have decayed since the last update.
        whole_until: µs on the holder's clock before which none of *left* decays, even if none is spent.
    """

    __slots__ = ("_decays_from", "_path", "_unspent", "left", "tokens", "whole_until")

    def __init__(self, tokens: float, path: Sequence[Limit], decays_from: Sequence[float]) -> None:
        self.tokens = tokens
        self._path = path
        self._decays_from = decays_from
        self._update([tokens] * len(path))

    def spend(self, now: int, cost: float) -> bool:
        """Spend *cost* tokens at *now*, µs on the holder's clock. Return whether they were there."""
        if now > self.whole_until:
            self.unspent(now)
        if self.left < cost:
            return False
        self.left -= cost
        return True

    def refund(self, now: int, cost: float) -> float:
        """Return up to *cost* spent but unused tokens to the lease, at *now*. Return how many it had room for."""
        unspent = self.unspent(now)
        refunded = [
            min(held + cost, entitlement(limit, self.tokens, decays_from, now))
            for held, limit, decays_from in zip(unspent, self._path, self._decays_from, strict=True)
        ]
        room = min([after - before for after, before in zip(refunded, unspent, strict=True)])
        self._update([held + room for held in unspent])
        return room

    def unspent(self, now: int) -> list[float]:
        """Return the tokens that can be returned at each level at *now*; length and order of the path."""
        unspent = [
            min(held - (left - self.left), entitlement(limit, self.tokens, decays_from, now))
            for (held, left), limit, decays_from in zip(self._unspent, self._path, self._decays_from, strict=True)
        ]
        self._update(unspent)
        return unspent

    def _update(self, unspent: Sequence[float]) -> None:
        self.left = min(unspent)
        # Each level decays at its own rate. Its unspent tokens are kept with ``left`` at the same time, because the
        # tokens spent later are the drop of ``left``.
        self._unspent = [(held, self.left) for held in unspent]
        # Spent tokens decay first.
        self.whole_until = min(
            [
                decays_from + (self.tokens - held) * SECOND / limit.fill_rate
                for held, limit, decays_from in zip(unspent, self._path, self._decays_from, strict=True)
            ]
        )
