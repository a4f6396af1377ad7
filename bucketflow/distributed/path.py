"""What to send to Redis for one path of buckets, and what the reply means. No clock, lock or I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bucketflow.algorithm.gcra import Decision, tokens_at
from bucketflow.algorithm.mirror import CONSTANTS, GCRA
from bucketflow.algorithm.token_lease import TokenLease
from bucketflow.limit import SECOND, Limit
from bucketflow.redis_client.batching import Answer
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import load_script
from bucketflow.redis_client.topology import ScriptCall

__all__ = ["RedisBucketRef", "RedisPath", "pack_numbers"]

#: Calls that are kept packed, of each path.
_PACKED = 16


class RedisBucketRef:
    """
    One bucket of a path.

    Args:
        key: Under which Redis has it.
        limit: Of this bucket alone.
        start: µs it is behind full if Redis has no such bucket.
    """

    __slots__ = ("key", "limit", "start")

    def __init__(self, key: bytes, limit: Limit, start: float) -> None:
        self.key = key
        self.limit = limit
        self.start = start


class RedisPath:
    """
    The buckets that one call passes.

    Args:
        levels: Root first, length = depth >= 1.

    Attributes:
        levels: As given.
        limits: Of each level.
        keys: Of each level.
        script: What answers.
        newest: The lease to spend first, if this process holds any.
    """

    newest: TokenLease | None = None

    def __init__(self, levels: Sequence[RedisBucketRef]) -> None:
        self.levels = levels
        self.limits = [level.limit for level in levels]
        self.keys = [level.key for level in levels]
        self.script = load_script("bucketflow", "consume", constants=CONSTANTS)
        self._answer = struct.Struct(f"<{2 + len(levels)}d")
        self._is_new = True
        self._packed: dict[tuple[float, ...], ScriptCall] = {}

    def spend(self, lease: TokenLease, cost: float) -> bool:  # noqa: ARG002
        """Take *cost* tokens of :attr:`newest`; here there is none."""
        return False

    def answer_locally(self, cost: float) -> Answer | None:  # noqa: ARG002
        """See :class:`bucketflow.redis_client.batching.BatchTarget`; here nothing is ever on lease."""
        return None

    def call(self, costs: tuple[float, ...]) -> ScriptCall:
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        call = self._packed.get(costs)  # most calls ask for the same few costs
        if call is None:
            is_new = self._is_new  # before packing: it may become known meanwhile
            call = self._pack(costs)
            if not is_new:
                if len(self._packed) >= _PACKED:
                    self._packed.clear()
                self._packed[costs] = call
        return call

    def answers(self, call: ScriptCall, reply: bytes) -> Sequence[Answer]:  # noqa: ARG002
        """See :class:`bucketflow.redis_client.batching.BatchTarget`."""
        if self._is_new:
            for level in self.levels:
                level.start = 0.0  # Redis has it now, or had a bucket already: none is to be started again
            self._is_new = False
        return list(self._answer.iter_unpack(reply))

    def decision(self, answer: Answer) -> Decision:
        """Return what *answer* says, in seconds and tokens."""
        wait, binding, *behind = answer
        tokens = tuple([tokens_at(limit, late, 0) for limit, late in zip(self.limits, behind, strict=True)])
        return Decision(wait == 0, wait / SECOND, None if wait == 0 else int(binding), tokens)

    def refund(self, cost: float) -> list[ScriptCall]:
        """Return the calls, in order, that give *cost* tokens back at every level."""
        args = [exact(cost)]
        for limit in self.limits:
            args += (exact(limit.capacity), exact(limit.fill_rate))
        return [ScriptCall.of(load_script("bucketflow", "refund", (GCRA,), CONSTANTS), self.keys, args)]

    def _pack(self, costs: tuple[float, ...]) -> ScriptCall:
        return ScriptCall.of(self.script, self.keys, (self.packed_limits(), pack_numbers(costs)))

    def packed_limits(self) -> bytes:
        """Return the limits as consume.lua reads them."""
        numbers: list[float] = []
        for level in self.levels:
            numbers += (level.limit.span, level.limit.fill_rate, level.start)
        return pack_numbers(numbers)


def pack_numbers(numbers: Sequence[float]) -> bytes:
    """Return *numbers* as the scripts read them: little-endian doubles."""
    return struct.pack(f"<{len(numbers)}d", *numbers)
