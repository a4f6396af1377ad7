"""A path of buckets of which this process holds tokens on lease, to be spent without asking Redis."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bucketflow.algorithm.token_lease import TokenLease
from bucketflow.clock import fast_reader
from bucketflow.distributed.path import RedisBucketRef, RedisPath, pack_numbers
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND
from bucketflow.redis_client.batching import Answer
from bucketflow.redis_client.encoding import exact, pack, pack_words
from bucketflow.redis_client.topology import ScriptCall

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LeasedPath"]


class _Granted:
    """A lease as Redis granted it: *whole* on its clock, *behind* as it was *since*, µs on ours."""

    __slots__ = ("behind", "lease", "since", "whole")

    def __init__(self, lease: TokenLease, whole: Sequence[float], behind: Sequence[float], since: int) -> None:
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

    def __init__(self, levels: Sequence[RedisBucketRef], most: float, clock: Clock) -> None:
        super().__init__(levels)
        self._most = exact(most).encode()
        self._limits: bytes | None = None  # packed once they do not change any more, and all before them in the call
        self._head = b""
        self._now = clock.now
        self._read, self._scale = fast_reader(clock)
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Hold nothing: what is on lease belongs to the parent."""
        self._lock = threading.Lock()
        # One, unless loops of several threads asked at the same time.
        self._granted: list[_Granted] = []
        self.newest = None

    @property
    def left(self) -> float:
        """Tokens on lease, as far as they have not faded since somebody last looked."""
        return sum([granted.lease.left for granted in self._granted])

    def spend(self, lease: TokenLease, cost: float) -> bool:
        """Take *cost* tokens of *lease* if they are there, and have not faded."""
        with self._lock:
            if lease.left >= cost and self._read() * self._scale <= lease.whole_until:
                lease.left -= cost  # TokenLease.spend, at a third of its price
                return True
        return False

    def answer_locally(self, cost: float) -> Answer | None:
        """
        See :class:`bucketflow.redis_client.batching.BatchTarget`.

        What others have taken since the lease began is not in the answer.
        """
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

    def call(self, costs: tuple[float, ...]) -> ScriptCall:
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        with self._lock:
            return self._lease(costs)

    def give_back(self) -> ScriptCall | None:
        """Return the call that settles what is on lease, ``None`` if nothing is."""
        with self._lock:
            return self._lease(()) if self._granted else None

    def refund(self, cost: float) -> list[ScriptCall]:
        """See :class:`RedisPath`. A lease takes what was spent of it; for the rest it would stand in the way."""
        with self._lock:
            for granted in self._granted:
                cost -= granted.lease.refund(self._now(), cost)
        if cost <= 0:
            return []
        settled = self.give_back()
        return [*([] if settled is None else [settled]), *super().refund(cost)]

    def answers(self, call: ScriptCall, reply: bytes) -> Sequence[Answer]:
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        depth = len(self.levels)
        tokens, now, *whole = struct.unpack_from(f"<{2 + depth}d", reply)
        answers = super().answers(call, reply[8 * (2 + depth) :])
        if tokens > 0:
            lease = TokenLease(tokens, self.limits, [call.made_at + (instant - now) for instant in whole])
            with self._lock:
                self._granted.append(_Granted(lease, whole, answers[-1][2:], call.made_at))
                self.newest = lease
        return answers

    def _spend(self, cost: float) -> _Granted | None:
        if cost > 0:
            for granted in self._granted:
                if granted.lease.spend(self._now(), cost):
                    return granted
        return None

    def _lease(self, costs: tuple[float, ...]) -> ScriptCall:
        now, settled = self._now(), []
        for granted in self._granted:
            settled.append(granted.lease.tokens)
            for instant, unspent in zip(granted.whole, granted.lease.unspent(now), strict=True):
                settled += (instant, unspent)
            granted.lease.left = 0.0
        self._granted = []
        self.newest = None
        limits = self._limits
        if limits is None:
            is_new, limits = self._is_new, self.packed_limits()
            self._head = pack(("EVALSHA", self.script.sha, len(self.keys), *self.keys, limits), more=3)
            self._limits = None if is_new else limits
        args = (pack_numbers(costs), self._most if max(costs, default=0.0) > 0 else b"0", pack_numbers(settled))
        return ScriptCall(self.script, self.keys, (limits, *args), self._head + pack_words(args), now)
