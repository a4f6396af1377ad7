"""
The scripts of the Redis buckets in Python: what a path of stored buckets replies to costs, leases and refunds.

``lua/consume.lua`` and ``lua/refund.lua`` mirror this module. A property test compares the replies bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow.algorithm import gcra
from bucketflow.algorithm.gcra import FULL, HALF_TICK, at_larger_rate, tokens_at
from bucketflow.algorithm.mirror import EXPIRY_STEP
from bucketflow.algorithm.token_lease import NO_LEASES, Outstanding
from bucketflow.limit import SECOND, Limit

__all__ = ["LeaseRequest", "LevelLimit", "SettledLease", "StoredBuckets"]


@dataclass(frozen=True, slots=True)
class LevelLimit:
    """
    The limit of one level, as the caller sends it.

    Attributes:
        span: µs that an empty bucket needs to fill.
        fill_rate: Tokens per second.
        initial_deficit: µs of refill that the bucket lacks if it is not stored.
    """

    span: float
    fill_rate: float
    initial_deficit: float


@dataclass(frozen=True, slots=True)
class SettledLease:
    """
    A lease that its holder returns.

    Attributes:
        tokens: Tokens that were leased.
        levels: For each level the instant, in µs, from which the lease decays, and the tokens unspent.
    """

    tokens: float
    levels: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class LeaseRequest:
    """
    The part of a call that settles leases and asks for another one.

    Attributes:
        most: Maximum number of tokens to lease.
        settled: The earlier leases of the caller.
    """

    most: float
    settled: Sequence[SettledLease]


@dataclass(slots=True)
class _Stored:
    """A stored bucket: its state, the largest fill rate since it was full, its leases, and its expiry in µs."""

    full_at: float
    fill_rate: float
    leases: Outstanding
    expires_at: float


@dataclass(slots=True)
class _Level:
    """A bucket during one call. ``scale`` is the stored fill rate over the caller's, where it is larger, else 1."""

    span: float
    fill_rate: float
    scale: float = 1.0
    full_at: float = FULL
    leases: Outstanding = NO_LEASES

    def deficit(self, now: int) -> float:
        """Return the µs of refill that the bucket lacks at *now*."""
        return self.full_at - now if self.full_at > now else 0.0

    def settle(self, now: int, settled: Sequence[tuple[float, float, float]]) -> None:
        """End leases: of each its tokens, the instant from which it decays, and its unspent tokens."""
        floor, out = (self.leases.floor, self.leases.tokens) if self.leases.floor > now else (FULL, 0.0)
        for tokens, decays_from, unspent in settled:
            ends_at = decays_from + tokens * SECOND / (self.fill_rate / self.scale)
            if out > 0 and ends_at > now:
                if out <= tokens:
                    floor, out = FULL, 0.0
                else:
                    floor, out = decays_from if ends_at == floor else floor, out - tokens
                self.full_at = max(float(now), floor, self.full_at - unspent * SECOND / self.fill_rate)
        self.leases = Outstanding(floor, out)

    def available(self, now: int) -> float:
        """Return the whole tokens that the bucket holds at *now*."""
        available = (self.span + HALF_TICK - self.deficit(now)) * self.fill_rate / SECOND
        return available - available % 1

    def lease(self, now: int, tokens: float) -> float:
        """Lease *tokens*; return the instant from which they decay."""
        decays_from = max(float(now), self.full_at)
        if tokens > 0:
            self.full_at = decays_from + tokens * SECOND / self.fill_rate
            self.leases = Outstanding(self.full_at, self.leases.tokens + tokens)
        return decays_from


class StoredBuckets:
    """Buckets by key, as Redis keeps them. A bucket that is full is not stored. Not thread-safe."""

    def __init__(self) -> None:
        self._stored: dict[bytes, _Stored] = {}

    def consume(
        self,
        keys: Sequence[bytes],
        now: int,
        limits: Sequence[LevelLimit],
        costs: Sequence[float],
        lease: LeaseRequest | None = None,
    ) -> list[float]:
        """
        Decide *costs* in order, each as if it were alone: every bucket of the path pays it, or none does.

        Args:
            keys: One bucket a level, root first; length = depth >= 1.
            now: µs on the clock of the buckets.
            limits: Same length and order as *keys*.
            costs: Tokens; a negative one only peeks.
            lease: Leases to settle before, and to grant after the costs.

        Returns:
            With *lease*: tokens leased, *now*, and the instant from which they decay at each level. Then for each cost
            the wait in µs, the binding level or -1, and the deficit of each level in µs.
        """
        levels = [self._load(key, now, limit) for key, limit in zip(keys, limits, strict=True)]
        is_changed = any(
            limit.initial_deficit > 0 and self._get(key, now) is None for key, limit in zip(keys, limits, strict=True)
        )
        most = None
        if lease is not None:
            # A lease decays at the caller's rate, which is too slow where a larger one is stored.
            most = 0.0 if any(level.scale > 1 for level in levels) else lease.most
            for index, level in enumerate(levels):
                level.settle(now, [(each.tokens, *each.levels[index]) for each in lease.settled])
        reply: list[float] = []
        for cost in costs:
            wait, binding = _decide(levels, now, cost)
            if wait > 0 and most is not None:
                most = 0.0  # the refused caller waits for the tokens that are left
            is_changed = is_changed or (wait == 0 and cost > 0)
            reply += (wait, binding, *((level.full_at - now) * level.scale for level in levels))
        if most is not None:
            tokens = max(0.0, min(most, *(level.available(now) for level in levels)))
            reply = [tokens, now, *(level.lease(now, tokens) for level in levels), *reply]
        if is_changed or most is not None:
            for key, level in zip(keys, levels, strict=True):
                self._store(key, now, level.full_at, level.fill_rate, level.leases)
        return reply

    def refund(self, keys: Sequence[bytes], now: int, limits: Sequence[Limit], cost: float) -> list[float]:
        """
        Return *cost* tokens to every bucket of a path, up to its capacity and not above what its leases allow.

        Returns:
            The tokens left at each level.
        """
        left = []
        for key, limit in zip(keys, limits, strict=True):
            stored = self._get(key, now) or _Stored(FULL, limit.fill_rate, NO_LEASES, 0.0)
            full_at, fill_rate = at_larger_rate(stored.full_at, stored.fill_rate, limit.fill_rate, now)
            current = Limit(limit.capacity, fill_rate)
            full_at = max(stored.leases.floor, gcra.refund(current, full_at, now, cost))
            self._store(key, now, full_at, fill_rate, stored.leases)
            left.append(tokens_at(current, full_at, now))
        return left

    def clear(self) -> None:
        """Fill every bucket."""
        self._stored.clear()

    def _load(self, key: bytes, now: int, limit: LevelLimit) -> _Level:
        level, stored = _Level(limit.span, limit.fill_rate), self._get(key, now)
        if stored is None:
            level.full_at = now + limit.initial_deficit if limit.initial_deficit > 0 else FULL
            return level
        level.full_at = stored.full_at
        if stored.fill_rate < limit.fill_rate and stored.full_at > now:
            level.full_at = now + (stored.full_at - now) * stored.fill_rate / limit.fill_rate
        elif stored.fill_rate > limit.fill_rate and stored.full_at > now:
            level.scale = stored.fill_rate / limit.fill_rate
            level.span, level.fill_rate = limit.span / level.scale, stored.fill_rate
        level.leases = stored.leases
        level.full_at = max(level.full_at, level.leases.floor)
        return level

    def _get(self, key: bytes, now: int) -> _Stored | None:
        stored = self._stored.get(key)
        if stored is not None and now >= stored.expires_at:
            del self._stored[key]
            return None
        return stored

    def _store(self, key: bytes, now: int, full_at: float, fill_rate: float, leases: Outstanding) -> None:
        if full_at <= now:
            self._stored.pop(key, None)
            return
        leases = leases if leases.tokens > 0 else NO_LEASES
        expires_at = full_at - full_at % EXPIRY_STEP + EXPIRY_STEP
        self._stored[key] = _Stored(full_at, fill_rate, leases, now + 1000 * math.ceil((expires_at - now) / 1000))


def _decide(levels: Sequence[_Level], now: int, cost: float) -> tuple[int, int]:
    """Take *cost* tokens from all *levels* or from none. Return the wait in µs, and the binding level or -1."""
    wait, binding = 0, -1
    taken = []
    for index, level in enumerate(levels):
        deficit = level.deficit(now) + abs(cost) * SECOND / level.fill_rate
        excess = deficit - level.span - HALF_TICK
        if excess > wait:
            wait, binding = math.ceil(excess), index
        taken.append(now + deficit)
    if wait == 0 and cost > 0:
        for level, full_at in zip(levels, taken, strict=True):
            level.full_at = full_at
    return wait, binding
