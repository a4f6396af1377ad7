"""Baselines, the unavoidable cost: minimal token buckets in Python, minimal calls through redis-py."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from time import monotonic
from typing import Any

import redis
import redis.asyncio

_PING = b"*1\r\n$4\r\nPING\r\n"


class MinimalBucket:
    """A token bucket (GCRA) with a lock and a clock: no waiting, no input checks."""

    __slots__ = ("_acquire", "_burst", "_full_at", "_interval", "_release")

    def __init__(self, capacity: float, fill_rate: float) -> None:
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release
        self._burst, self._interval, self._full_at = capacity / fill_rate, 1 / fill_rate, 0.0

    def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* if the bucket has them."""
        self._acquire()
        try:
            now, full_at = monotonic(), self._full_at
            full_at = (full_at if full_at > now else now) + tokens * self._interval  # noqa: FURB136 - max() costs more
            if full_at > now + self._burst:  # like the sum above, so that both round alike
                return False
            self._full_at = full_at
            return True
        finally:
            self._release()


class MinimalPath:
    """A path of token buckets under one lock."""

    __slots__ = ("_acquire", "_full_at", "_levels", "_release")

    def __init__(self, capacity: float, fill_rate: float, depth: int) -> None:
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release
        self._levels = tuple((level, capacity / fill_rate, 1 / fill_rate) for level in range(depth))
        self._full_at = [0.0] * depth

    def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* from all buckets or from none."""
        self._acquire()
        try:
            now, after = monotonic(), []
            for level, burst, interval in self._levels:
                full_at = self._full_at[level]
                full_at = (full_at if full_at > now else now) + tokens * interval  # noqa: FURB136
                if full_at > now + burst:
                    return False
                after.append(full_at)
            self._full_at = after
            return True
        finally:
            self._release()


class MinimalAsyncBucket:
    """:class:`MinimalBucket` for the coroutines of one event loop, which need no lock."""

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, capacity: float, fill_rate: float) -> None:
        self._burst, self._interval, self._full_at = capacity / fill_rate, 1 / fill_rate, 0.0

    async def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* if the bucket has them."""
        now, full_at = monotonic(), self._full_at
        full_at = (full_at if full_at > now else now) + tokens * self._interval  # noqa: FURB136
        if full_at > now + self._burst:  # like the sum above, so that both round alike
            return False
        self._full_at = full_at
        return True


class Ping:
    """A ``PING`` that was packed beforehand, on a connection from redis-py's pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool

    def call(self) -> bool:
        """Send the command; return whether the reply is right."""
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command([_PING])
            return connection.read_response() == b"PONG"
        finally:
            self._pool.release(connection)


class PolledPing(Ping):
    """:class:`Ping` by a caller that polls for the reply instead of sleeping."""

    def call(self) -> bool:
        """See :meth:`Ping.call`."""
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command([_PING])
            while not connection.can_read():
                pass
            return connection.read_response() == b"PONG"
        finally:
            self._pool.release(connection)


class AsyncPing:
    """:class:`Ping` for asyncio."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._pool = client.connection_pool

    async def call(self) -> bool:
        """See :meth:`Ping.call`."""
        connection = await self._pool.get_connection()
        try:
            await connection.send_packed_command([_PING])
            return await connection.read_response() == b"PONG"
        finally:
            await self._pool.release(connection)


class EmptyScript:
    """redis-py's ``evalsha`` of a script that does nothing; for threads or asyncio, depending on the client."""

    def __init__(self, client: Any, sha: str, keys: Sequence[str] = ("key",)) -> None:  # noqa: ANN401
        self._evalsha, self._sha, self._keys = client.evalsha, sha, tuple(keys)

    def call(self) -> Any:  # noqa: ANN401 - 1, or an awaitable of it
        """Run the script."""
        return self._evalsha(self._sha, len(self._keys), *self._keys)
