"""What must be spent anyway: the smallest bucket that Python allows, the smallest call that redis-py allows."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from time import monotonic
from typing import Any

import redis
import redis.asyncio

_PING = b"*1\r\n$4\r\nPING\r\n"


class MinimalBucket:
    """A token bucket with a lock and nothing else: no waiting, no checks, no clock but one."""

    __slots__ = ("_acquire", "_burst", "_full_at", "_interval", "_release")

    def __init__(self, capacity: float, fill_rate: float) -> None:
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release
        self._burst, self._interval, self._full_at = capacity / fill_rate, 1 / fill_rate, 0.0

    def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* if they are there."""
        self._acquire()
        try:
            now, full_at = monotonic(), self._full_at
            full_at = (full_at if full_at > now else now) + tokens * self._interval  # noqa: FURB136 - max() costs more
            if full_at > now + self._burst:  # one sum rounds like the other
                return False
            self._full_at = full_at
            return True
        finally:
            self._release()


class MinimalPath:
    """Some token buckets under one lock."""

    __slots__ = ("_acquire", "_full_at", "_levels", "_release")

    def __init__(self, capacity: float, fill_rate: float, depth: int) -> None:
        lock = Lock()
        self._acquire, self._release = lock.acquire, lock.release
        self._levels = tuple((level, capacity / fill_rate, 1 / fill_rate) for level in range(depth))
        self._full_at = [0.0] * depth

    def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* from all, or from none."""
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
    """The same for coroutines of one loop, which need no lock."""

    __slots__ = ("_burst", "_full_at", "_interval")

    def __init__(self, capacity: float, fill_rate: float) -> None:
        self._burst, self._interval, self._full_at = capacity / fill_rate, 1 / fill_rate, 0.0

    async def consume(self, tokens: float = 1) -> bool:
        """Take *tokens* if they are there."""
        now, full_at = monotonic(), self._full_at
        full_at = (full_at if full_at > now else now) + tokens * self._interval  # noqa: FURB136
        if full_at > now + self._burst:  # one sum rounds like the other
            return False
        self._full_at = full_at
        return True


class Ping:
    """A ``PING`` packed beforehand, on a connection from redis-py's pool."""

    def __init__(self, client: redis.Redis) -> None:
        self._pool = client.connection_pool

    def call(self) -> bool:
        """Ask; return whether the answer is right."""
        connection = self._pool.get_connection()
        try:
            connection.send_packed_command([_PING])
            return connection.read_response() == b"PONG"
        finally:
            self._pool.release(connection)


class AwakePing(Ping):
    """The same, by a caller who does not sleep until the answer is there."""

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
    """See :class:`Ping`."""

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
    """redis-py's ``evalsha``, of either half, with a script that does nothing."""

    def __init__(self, client: Any, sha: str, keys: Sequence[str] = ("key",)) -> None:  # noqa: ANN401
        self._evalsha, self._sha, self._keys = client.evalsha, sha, tuple(keys)

    def call(self) -> Any:  # noqa: ANN401 - 1, or what gives it when awaited
        """Run the script."""
        return self._evalsha(self._sha, len(self._keys), *self._keys)
