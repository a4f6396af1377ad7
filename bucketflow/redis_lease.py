"""A path of buckets of which this process holds tokens on lease, to be spent without asking Redis."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bucketflow.forks import forget_after_fork
from bucketflow.lease import Lease
from bucketflow.limit import SECOND
from bucketflow.merging import Answer, Request
from bucketflow.redis_path import Level, RedisPath, pack_numbers
from bucketflow.redis_routes import Call
from bucketflow.scripts import exact, load_script

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LeasedPath"]


class _Held:
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
        self._lease_script = load_script("bucketflow", "lease")
        self.after_fork()
        forget_after_fork(self)

    def after_fork(self) -> None:
        """Hold nothing: what is on lease belongs to the parent."""
        self._lock = threading.Lock()
        self._held: list[_Held] = []
        self._was_used = False

    @property
    def holds(self) -> bool:
        """Whether anything is on lease."""
        return bool(self._held)

    def was_used(self) -> bool:
        """Return whether anybody spent or asked since this was last called."""
        was_used, self._was_used = self._was_used, False
        return was_used

    def spend(self, cost: float) -> bool:
        """See :class:`RedisPath`."""
        with self._lock:
            return self._spend(cost) is not None

    def call(self, requests: Sequence[Request]) -> Call | None:
        """See :class:`bucketflow.merging.Asked`. Whoever came while a lease was under way may be answered from it."""
        with self._lock:
            for request in requests:
                held = self._spend(request.cost)
                if held is not None:
                    request.answer = self._answer_from(held)
            left = [request for request in requests if request.answer is None]
            return self._lease(left) if left else None

    def give_back(self) -> Call | None:
        """Return the call that settles all there is, ``None`` if there is nothing."""
        with self._lock:
            return self._lease(()) if self._held else None

    def settle(self, requests: Sequence[Request], reply: bytes) -> None:
        """See :class:`bucketflow.merging.Asked`."""
        depth = len(self.levels)
        tokens, now, *numbers = struct.unpack(f"<{len(reply) // 8}d", reply)
        whole, answers = numbers[:depth], tuple(numbers[depth:])
        self.answer(requests, answers)
        if tokens > 0:
            since = requests[-1].asked_at
            lease = Lease(tokens, self.limits, [since + (instant - now) for instant in whole])
            with self._lock:
                self._held.append(_Held(lease, whole, answers[-depth:], since))

    def _spend(self, cost: float) -> _Held | None:
        if cost > 0 and self._held:
            now = self._now()
            for held in self._held:
                if held.lease.spend(now, cost):
                    self._was_used = True
                    return held
        return None

    def _answer_from(self, held: _Held) -> Answer:
        """Return what Redis would say, as far as can be known: what others have taken since is not in it."""
        passed, spent = self._now() - held.since, held.lease.spent * SECOND
        behind = [
            max(0.0, late - passed) + spent / limit.fill_rate
            for late, limit in zip(held.behind, self.limits, strict=True)
        ]
        return (0.0, -1.0, *behind)

    def _lease(self, requests: Sequence[Request]) -> Call:
        now, settled = self._now(), []
        for held in self._held:
            settled.append(held.lease.tokens)
            for instant, unspent in zip(held.whole, held.lease.unspent(now), strict=True):
                settled += (instant, unspent)
        self._held = []
        self._was_used = True
        for request in requests:
            request.asked_at = now
        limits = [
            number for level in self.levels for number in (level.limit.capacity, level.limit.fill_rate, level.start)
        ]
        costs = [request.cost for request in requests]
        most = self._most if any(cost > 0 for cost in costs) else 0.0
        args = (pack_numbers(limits), pack_numbers(costs), exact(most), pack_numbers(settled))
        return Call.of(self._lease_script, self.keys, args)
