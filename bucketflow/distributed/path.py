"""The script calls of one path of buckets, and the decoding of their replies. No clock, lock or I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bucketflow.algorithm.gcra import Decision, tokens_at
from bucketflow.limit import SECOND, Limit
from bucketflow.redis_client.batching import PathReply, ReadReply
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import load_script
from bucketflow.redis_client.topology import ScriptCall

__all__ = ["RedisBucketRef", "RedisPath", "pack_numbers"]

#: Maximum number of encoded calls that one path caches.
_MAX_CACHED_CALLS = 16


class RedisBucketRef:
    """
    One bucket of a path, as Redis stores it.

    Args:
        key: The bucket's key in Redis.
        limit: Capacity and fill rate of this bucket.
        initial_deficit: µs of refill that the bucket lacks at the start, if Redis has no value under *key*.
    """

    __slots__ = ("initial_deficit", "key", "limit")

    def __init__(self, key: bytes, limit: Limit, initial_deficit: float) -> None:
        self.key = key
        self.limit = limit
        self.initial_deficit = initial_deficit


class RedisPath:
    """
    The buckets from a root to one bucket, evaluated by one script call.

    Args:
        levels: Root first, length = depth >= 1.

    Attributes:
        levels: As given.
        limits: The limit of each level; same length and order.
        keys: The key of each level; same length and order.
        script: The script that evaluates costs.
    """

    def __init__(self, levels: Sequence[RedisBucketRef]) -> None:
        self.levels = levels
        self.limits = [level.limit for level in levels]
        self.keys = [level.key for level in levels]
        self.script = load_script("bucketflow", "consume")
        self._reply_format = struct.Struct(f"<{2 + len(levels)}d")
        self._sends_initial_state = True  # until Redis has replied once
        self._cached_calls: dict[tuple[float, ...], ScriptCall] = {}

    def try_spend(self, cost: float) -> bool:  # noqa: ARG002
        """Spend *cost* tokens from a lease without a call to Redis; return whether that was possible. Never here."""
        return False

    def answer_locally(self, cost: float) -> PathReply | None:  # noqa: ARG002
        """Return ``None``: without a lease every reply comes from Redis."""
        return None

    def prepare(self, costs: tuple[float, ...]) -> tuple[ScriptCall, ReadReply]:
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        call = self._cached_calls.get(costs)  # most callers use the same few costs
        if call is None:
            is_final = not self._sends_initial_state  # before encoding: a reply may arrive meanwhile
            call = ScriptCall.of(self.script, self.keys, (self.packed_limits(), pack_numbers(costs)))
            if is_final:
                if len(self._cached_calls) >= _MAX_CACHED_CALLS:
                    self._cached_calls.clear()
                self._cached_calls[costs] = call
        return call, self._read

    def decision(self, reply: PathReply) -> Decision:
        """Convert *reply* to seconds and tokens."""
        wait, binding, *deficits = reply
        tokens = tuple([tokens_at(limit, deficit, 0) for limit, deficit in zip(self.limits, deficits, strict=True)])
        return Decision(wait == 0, wait / SECOND, None if wait == 0 else int(binding), tokens)

    def refund(self, cost: float) -> list[ScriptCall]:
        """Return the calls, in order, that return *cost* tokens to every level."""
        args = [exact(cost)]
        for limit in self.limits:
            args += (exact(limit.capacity), exact(limit.fill_rate))
        return [ScriptCall.of(load_script("bucketflow", "refund"), self.keys, args)]

    def packed_limits(self) -> bytes:
        """Encode the limits and initial deficits for ``consume.lua``."""
        numbers: list[float] = []
        for level in self.levels:
            numbers += (level.limit.span, level.limit.fill_rate, level.initial_deficit)
        return pack_numbers(numbers)

    def _read(self, reply: bytes) -> list[PathReply]:
        if self._sends_initial_state:
            # Every bucket exists in Redis now. Sent again, the initial state would reset one that has expired since.
            for level in self.levels:
                level.initial_deficit = 0.0
            self._sends_initial_state = False
        return list(self._reply_format.iter_unpack(reply))


def pack_numbers(numbers: Sequence[float]) -> bytes:
    """Encode *numbers* for the scripts: little-endian doubles."""
    return struct.pack(f"<{len(numbers)}d", *numbers)
