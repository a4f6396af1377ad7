"""A stand-in for the Redis client of the Redis buckets, for tests."""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from typing import Any

from bucketflow.algorithm.stored_path import LeaseRequest, LevelLimit, SettledLease, StoredBuckets
from bucketflow.clock import SYSTEM_CLOCK, Clock
from bucketflow.fork import reset_after_fork
from bucketflow.limit import Limit
from bucketflow.process_bound import ProcessBound
from bucketflow.script_host import ScriptHost

__all__ = ["MemoryRedis"]


class MemoryRedis(ProcessBound, ScriptHost):
    """
    Keeps the buckets of ``bucketflow.distributed`` in memory, with the same arithmetic as Redis.

    Pass it in place of the client, to :class:`bucketflow.distributed.RedisTokenBucket`, to
    :class:`bucketflow.distributed.AsyncRedisTokenBucket` and to the functions that create hierarchies. Buckets with one
    key share their tokens if they have the same object. Thread-safe.

    Args:
        clock: Clock of the stored buckets, and of the waits of buckets that were given no clock. With a
            :class:`bucketflow.testing.FakeClock` the test controls the time.
    """

    _instead = "create one in each process, or share a Redis"

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self.clock = clock
        self._buckets = StoredBuckets()
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Drop the lock: in a forked child the thread that held it does not exist."""
        self._lock = threading.Lock()

    def flushall(self) -> None:
        """Fill every bucket, as a Redis that has lost its data does."""
        with self._lock:
            self._buckets.clear()

    def run_script(self, name: str, keys: Sequence[bytes], args: Sequence[Any]) -> bytes:
        """See :class:`bucketflow.script_host.ScriptHost`."""
        with self._lock:
            numbers = self._consume(keys, args) if name == "consume" else self._refund(keys, args)
        return struct.pack(f"<{len(numbers)}d", *numbers)

    def _consume(self, keys: Sequence[bytes], args: Sequence[Any]) -> list[float]:
        limits = [LevelLimit(*level) for level in struct.iter_unpack("<3d", args[0])]
        lease = None
        if len(args) > 2:  # noqa: PLR2004 - limits and costs
            settled = (_settled(each) for each in struct.iter_unpack(f"<{1 + 2 * len(keys)}d", args[3]))
            lease = LeaseRequest(float(args[2]), list(settled))
        return self._buckets.consume(keys, self.clock.now(), limits, _numbers(args[1]), lease)

    def _refund(self, keys: Sequence[bytes], args: Sequence[Any]) -> list[float]:
        cost, *numbers = map(float, args)
        limits = [Limit(*level) for level in zip(numbers[::2], numbers[1::2], strict=True)]
        return self._buckets.refund(keys, self.clock.now(), limits, cost)


def _numbers(packed: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(packed) // 8}d", packed)


def _settled(numbers: tuple[float, ...]) -> SettledLease:
    tokens, *levels = numbers
    return SettledLease(tokens, list(zip(levels[::2], levels[1::2], strict=True)))
