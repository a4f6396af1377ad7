"""A path of buckets of which this process holds tokens on lease, to be spent without asking Redis."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bucketflow.clock import raw
from bucketflow.forks import forget_after_fork
from bucketflow.lease import Lease
from bucketflow.limit import SECOND
from bucketflow.merging import Answer
from bucketflow.redis_path import Level, RedisPath, pack_numbers
from bucketflow.redis_routes import Call
from bucketflow.scripts import exact

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LeasedPath"]


class _Granted:
    """A lease as Redis granted it: *whole* on its clock, *behind* as it was *since*, µs on ours."""

    __slots__ = ("behind", "lease", "since", "whole")

    def __init__(self, lease: Lease, whole: Sequence[float], behind: Sequence[float], since: int) -> None:
        self.lease = lease
        self.whole = whole
        self.behind = behind
        self.since = since


class LeasedPath(RedisPath):
    """
    Each call to Redis settles what was leased before, answers those who ask, and takes more ahead.

    Any thread may call.

    Args:
        levels: See :class:`RedisPath`.
        most: Tokens to take ahead in one call, at most.
        clock: What leases fade by. They count from before their call was sent, so none lasts too long.
    """

    def __init__(self, levels: Sequence[Level], most: float, clock: Clock) -> None:
        super().__init__(levels)
        self._most = most
        self._now = clock.now
        self._read, self._scale = raw(clock)
        self.after_fork()
        forget_after_fork(self)

    def after_fork(self) -> None:
        """Hold nothing: what is on lease belongs to the parent."""
        self._lock = threading.Lock()
        # One, unless loops of several threads asked at the same time.
        self._granted: list[_Granted] = []
        self._newest: Lease | None = None

    @property
    def left(self) -> float:
        """Tokens on lease, as far as they have not faded since somebody last looked."""
        return sum([granted.lease.left for granted in self._granted])

    def spend(self, cost: float) -> bool:
        """See :class:`RedisPath`."""
        lease = self._newest
        if lease is None:
            return False
        with self._lock:
            if lease.left >= cost > 0 and self._read() * self._scale <= lease.whole_until:
                lease.left -= cost  # Lease.spend, at a third of its price
                return True
            return self._spend(cost) is not None

    def held(self, cost: float) -> Answer | None:
        """See :class:`bucketflow.merging.Asked`. What others have taken since the lease began is not in the answer."""
        with self._lock:
            granted = self._spend(cost)
            if granted is None:
                return None
            passed, spent = self._now() - granted.since, (granted.lease.tokens - granted.lease.left) * SECOND
        behind = [
            max(0.0, late - passed) + spent / limit.fill_rate
            for late, limit in zip(granted.behind, self.limits, strict=True)
        ]
        return (0.0, -1.0, *behind)

    def call(self, costs: tuple[float, ...]) -> Call:
        """See :class:`bucketflow.merging.Asked`."""
        with self._lock:
            return self._lease(costs)

    def give_back(self) -> Call | None:
        """See :class:`RedisPath`."""
        with self._lock:
            return self._lease(()) if self._granted else None

    def refund(self, cost: float) -> list[Call]:
        """See :class:`RedisPath`. A lease takes what was spent of it; for the rest it would stand in the way."""
        with self._lock:
            for granted in self._granted:
                cost -= granted.lease.refund(self._now(), cost)
        if cost <= 0:
            return []
        settled = self.give_back()
        return [*([] if settled is None else [settled]), *super().refund(cost)]

    def answers(self, call: Call, reply: bytes) -> Sequence[Answer]:
        """See :class:`bucketflow.merging.Asked`."""
        depth = len(self.levels)
        tokens, now, *whole = struct.unpack_from(f"<{2 + depth}d", reply)
        answers = super().answers(call, reply[8 * (2 + depth) :])
        if tokens > 0:
            lease = Lease(tokens, self.limits, [call.made_at + (instant - now) for instant in whole])
            with self._lock:
                self._granted.append(_Granted(lease, whole, answers[-1][2:], call.made_at))
                self._newest = lease
        return answers

    def _spend(self, cost: float) -> _Granted | None:
        if cost > 0:
            for granted in self._granted:
                if granted.lease.spend(self._now(), cost):
                    return granted
        return None

    def _lease(self, costs: tuple[float, ...]) -> Call:
        now, settled = self._now(), []
        for granted in self._granted:
            settled.append(granted.lease.tokens)
            for instant, unspent in zip(granted.whole, granted.lease.unspent(now), strict=True):
                settled += (instant, unspent)
            granted.lease.left = 0.0
        self._granted = []
        self._newest = None
        most = self._most if any(cost > 0 for cost in costs) else 0.0
        args = (self.packed_limits(), pack_numbers(costs), exact(most), pack_numbers(settled))
        return Call.of(self.script, self.keys, args, now)
