"""What to send to Redis for one path of buckets, and what the reply means. No clock, lock or I/O."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

from bucketflow.core import Decision, tokens_at
from bucketflow.limit import SECOND, Limit
from bucketflow.merging import Answer, Request
from bucketflow.redis_routes import Call
from bucketflow.scripts import exact, load_script

__all__ = ["Level", "RedisPath", "pack_numbers"]

#: Calls that are kept packed, of each path.
_PACKED = 16


class Level:
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
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = levels
        self.limits = [level.limit for level in levels]
        self.keys = [level.key for level in levels]
        self._script = load_script("bucketflow", "consume")
        # Most calls ask for the same few costs.
        self._packed = lru_cache(_PACKED)(self._pack)

    def spend(self, cost: float) -> bool:  # noqa: ARG002 - see LeasedPath
        """Take *cost* tokens without asking Redis, if as many are on lease; here nothing ever is."""
        return False

    def call(self, requests: Sequence[Request]) -> Call | None:
        """See :class:`bucketflow.merging.Asked`."""
        starts = tuple([level.start for level in self.levels])
        return self._packed(starts, tuple([request.cost for request in requests]))

    def settle(self, requests: Sequence[Request], reply: bytes) -> None:
        """See :class:`bucketflow.merging.Asked`."""
        self.answer(requests, struct.unpack(f"<{len(reply) // 8}d", reply))

    def answer(self, requests: Sequence[Request], numbers: Answer) -> None:
        """Answer *requests* by as many answers, one after the other."""
        width = 2 + len(self.levels)
        for place, request in enumerate(requests):
            request.answer = numbers[place * width : (place + 1) * width]
        for level in self.levels:
            level.start = 0.0  # the server has it now, or had a bucket already

    def decision(self, answer: Answer) -> Decision:
        """Return what *answer* says, in seconds and tokens."""
        wait, binding, *behind = answer
        tokens = tuple([tokens_at(limit, late, 0) for limit, late in zip(self.limits, behind, strict=True)])
        return Decision(wait == 0, wait / SECOND, None if wait == 0 else int(binding), tokens)

    def give_back(self) -> Call | None:
        """Return the call that settles what is on lease, ``None`` if nothing is."""
        return None

    def refund(self, cost: float) -> Call:
        """Return the call that gives *cost* tokens back at every level."""
        args = [exact(cost)]
        for limit in self.limits:
            args += (exact(limit.capacity), exact(limit.fill_rate))
        return Call.of(load_script("bucketflow", "refund"), self.keys, args)

    def _pack(self, starts: Sequence[float], costs: Sequence[float]) -> Call:
        limits: list[float] = []
        for level, start in zip(self.levels, starts, strict=True):
            limits += (level.limit.span, level.limit.fill_rate, start)
        return Call.of(self._script, self.keys, (pack_numbers(limits), pack_numbers(costs)))


def pack_numbers(numbers: Sequence[float]) -> bytes:
    """Return *numbers* as the scripts read them: little-endian doubles."""
    return struct.pack(f"<{len(numbers)}d", *numbers)
