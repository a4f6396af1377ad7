"""
A path of buckets from which this process leases tokens, to spend them without a round trip each.

The arithmetic of leases is in :mod:`bucketflow.algorithm.token_lease`.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from bucketflow.algorithm.token_lease import TokenLease
from bucketflow.clock import fast_reader
from bucketflow.distributed.path import RedisBucketRef, RedisPath, pack_numbers
from bucketflow.fork import reset_after_fork
from bucketflow.limit import SECOND
from bucketflow.redis_client.batching import PathReply, ReadReply
from bucketflow.redis_client.encoding import exact, pack, pack_words
from bucketflow.redis_client.topology import ScriptCall

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["LeasedPath"]


class _HeldLease:
    """
    A lease, and the state of its path when it was granted.

    Args:
        lease: The tokens, on the clock of this process.
        decays_from: µs on the server's clock at which the lease begins to decay at each level; length of the path.
        deficits: The deficit of each level after the grant, without the leased tokens, in µs; length of the path.
        since: µs on the clock of this process; the time of *deficits*.
    """

    __slots__ = ("decays_from", "deficits", "lease", "since")

    def __init__(self, lease: TokenLease, decays_from: Sequence[float], deficits: Sequence[float], since: int) -> None:
        self.lease = lease
        self.decays_from = decays_from
        self.deficits = deficits
        self.since = since


class LeasedPath(RedisPath):
    """
    A path each call of which settles the earlier leases, evaluates the costs, and leases more tokens. Thread-safe.

    Args:
        levels: See :class:`RedisPath`.
        lease: Maximum number of tokens to lease in one call.
        clock: Measures the decay of leases. A lease counts from before its call was sent, so none lasts too long.
    """

    def __init__(self, levels: Sequence[RedisBucketRef], lease: float, clock: Clock) -> None:
        super().__init__(levels)
        self._lease_size = exact(lease).encode()
        self._limits: bytes | None = None  # encoded once, as soon as they no longer carry the initial state
        self._call_head = b""  # the encoded call up to the limits
        self._now = clock.now
        self._read_clock, self._clock_scale = fast_reader(clock)
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop all leases: in a forked child they belong to the parent process."""
        self._lock = threading.Lock()
        self._held: list[_HeldLease] = []  # several only if event loops of several threads leased at the same time
        self._newest: TokenLease | None = None

    @property
    def left(self) -> float:
        """Tokens left in all leases, less what had decayed when each lease was last used."""
        return sum([held.lease.left for held in self._held])

    def try_spend(self, cost: float) -> bool:
        """Spend *cost* tokens, above 0, of the newest lease if it has them and none can have decayed yet."""
        lease = self._newest
        if lease is None:
            return False
        with self._lock:
            if lease.left >= cost and self._read_clock() * self._clock_scale <= lease.whole_until:
                lease.left -= cost  # inlined TokenLease.spend: a third of its cost
                return True
        return False

    def answer_locally(self, cost: float) -> PathReply | None:
        """
        Spend *cost* tokens of any lease; return the reply, or ``None`` if no lease has them.

        The deficits in the reply leave out what other processes have taken since the lease was granted.
        """
        with self._lock:
            held = self._spend(cost)
            if held is None:
                return None
            elapsed, spent = self._now() - held.since, (held.lease.tokens - held.lease.left) * SECOND
        deficits = [
            max(0.0, deficit - elapsed) + spent / limit.fill_rate
            for deficit, limit in zip(held.deficits, self.limits, strict=True)
        ]
        return (0.0, -1.0, *deficits)

    def prepare(self, costs: tuple[float, ...]) -> tuple[ScriptCall, ReadReply]:
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        with self._lock:
            now = self._now()
            return self._settling_call(costs, now), partial(self._read_lease, now)

    def settle(self) -> ScriptCall | None:
        """End all leases; return the call that returns their unspent tokens, or ``None`` if none is held."""
        with self._lock:
            return self._settling_call((), self._now()) if self._held else None

    def refund(self, cost: float) -> list[ScriptCall]:
        """
        Return the calls, in order, that return *cost* tokens to every level.

        A lease takes back what was spent of it. For the rest the leases are settled first, because Redis accepts no
        refund that would fill a bucket before the leases on it have decayed.
        """
        with self._lock:
            for held in self._held:
                cost -= held.lease.refund(self._now(), cost)
        if cost <= 0:
            return []
        settling = self.settle()
        return [*([] if settling is None else [settling]), *super().refund(cost)]

    def _spend(self, cost: float) -> _HeldLease | None:
        if cost > 0:
            for held in self._held:
                if held.lease.spend(self._now(), cost):
                    return held
        return None

    def _settling_call(self, costs: tuple[float, ...], now: int) -> ScriptCall:
        """End all leases; return the call that settles them, evaluates *costs*, and leases if a cost is above 0."""
        settled: list[float] = []
        for held in self._held:
            settled.append(held.lease.tokens)
            for decays_from, unspent in zip(held.decays_from, held.lease.unspent(now), strict=True):
                settled += (decays_from, unspent)
            held.lease.left = 0.0
        self._held = []
        self._newest = None
        limits = self._limits
        if limits is None:
            is_final, limits = not self._sends_initial_state, self.packed_limits()
            self._call_head = pack(("EVALSHA", self.script.sha, len(self.keys), *self.keys, limits), more=3)
            self._limits = limits if is_final else None
        lease_size = self._lease_size if max(costs, default=0.0) > 0 else b"0"
        args = (pack_numbers(costs), lease_size, pack_numbers(settled))
        return ScriptCall(self.script, self.keys, (limits, *args), self._call_head + pack_words(args))

    def _read_lease(self, sent_at: int, reply: bytes) -> list[PathReply]:
        """Store the lease in *reply*, whose call was made at *sent_at*, µs; return the path replies."""
        depth = len(self.levels)
        tokens, server_now, *decays_from = struct.unpack_from(f"<{2 + depth}d", reply)
        replies = self._read(reply[8 * (2 + depth) :])
        if tokens > 0:
            lease = TokenLease(tokens, self.limits, [sent_at + (instant - server_now) for instant in decays_from])
            with self._lock:
                self._held.append(_HeldLease(lease, decays_from, replies[-1][2:], sent_at))
                self._newest = lease
        return replies
