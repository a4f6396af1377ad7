"""One server, and the connections to it: a call is some commands packed beforehand and their replies, nothing more."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple, TypeVar

import redis
from redis.exceptions import NoScriptError, ResponseError

from bucketflow.redis_client.spin_wait import SpinWait

__all__ = ["Node"]

ResultT = TypeVar("ResultT")

# redis-py below 5.3 wants the command's name before it hands out a connection; later ones warn of it.
_name = inspect.signature(redis.ConnectionPool.get_connection).parameters.get("command_name")
_NAME = ("EVALSHA",) if _name is not None and _name.default is inspect.Parameter.empty else ()

#: Seconds for which a connection that has just answered is not looked at before it is used again.
_SURELY_UP = 0.005


@dataclass(frozen=True, slots=True)
class Node:
    """
    One server, or the master that Sentinel names.

    Attributes:
        client: Its private client.
        label: What errors call it.
        pools: All connections that were opened for it, those to sentinels too.
        timeout: Seconds it may take to accept a connection, and to answer.
        is_blocking_pool: Whether the pool has others wait for connections.
    """

    client: Any
    label: str
    pools: tuple[Any, ...]
    timeout: float
    is_blocking_pool: bool = False
    _idle: list[_IdleConnection] = field(default_factory=list)
    _spin_wait: SpinWait = field(default_factory=SpinWait)

    def exchange(self, commands: Sequence[bytes], *, alone: bool = False) -> list[Any]:
        """
        Send *commands* at once, and return a reply or an error of the server for each; only for the half with threads.

        redis-py's ``execute_command`` costs four times the CPU, for what a script does not need: packing arguments of
        any type, callbacks for replies, telemetry, and the loop that would repeat the call.

        Args:
            commands: Packed.
            alone: Whether no other thread waits for this exchange: it would need what a spin takes.
        """
        connection = None
        try:
            connection = self.connect()
            connection.send_packed_command(commands if len(commands) == 1 else [b"".join(commands)])
            if alone:
                self._spin_wait.wait(connection.can_read)
            replies = [_read(connection) for _ in commands]
        except BaseException:
            if connection is not None:
                connection.disconnect()  # or a late reply would answer the next call
                self.release(connection)
            raise
        if not self._retain(connection, replies):
            self.release(connection)
        return replies

    async def exchange_async(self, commands: Sequence[bytes]) -> list[Any]:
        """Do what :meth:`exchange` does, in the half that has coroutines."""
        try:
            connection = await _within(self.timeout, self._connect_async())
            return await _within(self.timeout, self._converse(connection, commands))
        except asyncio.TimeoutError:
            raise redis.TimeoutError(f"no answer within {self.timeout:g} s") from None

    async def _connect_async(self) -> Any:  # noqa: ANN401 - a connection
        pool = self.client.connection_pool
        while (idle := self._take_idle()) is not None:
            if idle.is_fresh():
                return idle.connection
            await pool.release(idle.connection)
        return await pool.get_connection(*_NAME)

    async def _converse(self, connection: Any, commands: Sequence[bytes]) -> list[Any]:  # noqa: ANN401
        pool = self.client.connection_pool
        try:
            await connection.send_packed_command([b"".join(commands)])
            replies = [await _read_async(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
        if not self._retain(connection, replies):
            await pool.release(connection)
        return replies

    def connect(self) -> Any:  # noqa: ANN401 - a connection
        """Return a connection that is up; give it to :meth:`release` in the end."""
        while (idle := self._take_idle()) is not None:
            if idle.is_fresh():
                return idle.connection
            self.release(idle.connection)
        return self.client.connection_pool.get_connection(*_NAME)

    def release(self, connection: Any) -> None:  # noqa: ANN401
        """Return *connection* to the pool."""
        self.client.connection_pool.release(connection)

    def release_idle(self) -> None:
        """Return to the pool what is idle for the next call; only for the half that has threads."""
        while (idle := self._take_idle()) is not None:
            self.release(idle.connection)

    def close(self) -> None:
        """Close the connections, but those of calls under way; the next call opens new ones."""
        self.release_idle()
        for pool in self.pools:
            if isinstance(pool, redis.BlockingConnectionPool):
                pool.disconnect()  # redis-py 5's knows no other way
            else:
                pool.disconnect(inuse_connections=False)

    def _retain(self, connection: Any, replies: Sequence[Any]) -> bool:  # noqa: ANN401
        """
        Keep *connection*, which gave *replies*, for the next call; return whether it is idle.

        A visit to the pool costs as much as a call, because it looks whether the server has closed the connection. A
        blocking pool has others wait for what is not given back. And an error may be the reply to something else, such
        as a handshake that was interrupted: the pool looks whether there is more to read.
        """
        if self.is_blocking_pool:
            return False
        for reply in replies:
            if isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError):
                return False
        self._idle.append(_IdleConnection(connection, monotonic()))
        return True

    def _take_idle(self) -> _IdleConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


class _IdleConnection(NamedTuple):
    """A connection, and when it answered."""

    connection: Any
    used_at: float

    def is_fresh(self) -> bool:
        """Return whether it answered a moment ago: no server restarts within it."""
        return monotonic() - self.used_at < _SURELY_UP


async def _within(seconds: float, awaited: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await within *seconds*; raises ``asyncio.TimeoutError``."""
    if sys.version_info >= (3, 11):  # where wait_for would make it a task of its own, up to 3.11
        async with asyncio.timeout(seconds):
            return await awaited
    return await asyncio.wait_for(awaited, seconds)


def _read(connection: Any) -> Any:  # noqa: ANN401
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


async def _read_async(connection: Any) -> Any:  # noqa: ANN401
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
