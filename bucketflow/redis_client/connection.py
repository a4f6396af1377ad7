"""
Connections to one server, and the exchange of encoded commands for replies over them.

Which server an exchange goes to is decided in :mod:`bucketflow.redis_client.topology`.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 - the first connection imports it: a child forked meanwhile would wait for ever
import inspect
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import redis
from redis.exceptions import NoScriptError, ResponseError

from bucketflow.clock import monotonic
from bucketflow.redis_client.replies import spoils_connection
from bucketflow.redis_client.spin_wait import SpinWait

__all__ = ["MAX_IDLE", "Node"]

ResultT = TypeVar("ResultT")

# get_connection() requires the command's name in redis-py below 5.3; later versions deprecate the argument.
_name = inspect.signature(redis.ConnectionPool.get_connection).parameters.get("command_name")
_GET_CONNECTION_ARGS = ("EVALSHA",) if _name is not None and _name.default is inspect.Parameter.empty else ()

#: Seconds after a reply within which a connection is reused without a look at its socket.
_FRESHNESS = 0.005
#: Seconds of idleness after which a connection is replaced, unless the user's ``health_check_interval`` says otherwise.
#: A load balancer may have dropped it without a word: a call over it would wait for its timeout, and fail.
MAX_IDLE = 30.0


@dataclass(frozen=True, slots=True)
class Node:
    """
    One server, or the master that Sentinel names.

    Attributes:
        client: The private redis-py client of this server.
        label: Name of the server in errors.
        pools: Every connection pool opened for this server, including those to sentinels.
        timeout: Seconds the server may take to accept a connection, and to reply.
        is_blocking_pool: Whether callers of the pool block while all its connections are in use.
        max_idle: Seconds of idleness after which a connection is replaced by a new one before the next call.
        clock: Returns seconds; never steps.
    """

    client: Any
    label: str
    pools: tuple[Any, ...]
    timeout: float
    is_blocking_pool: bool = False
    max_idle: float = MAX_IDLE
    clock: Callable[[], float] = monotonic
    _idle: list[_IdleConnection] = field(default_factory=list)
    _pooled_at: WeakKeyDictionary[Any, float] = field(default_factory=WeakKeyDictionary)
    _spin_wait: SpinWait = field(default_factory=SpinWait)

    def exchange(self, commands: Sequence[bytes], *, may_spin: bool = False) -> list[Any]:
        """
        Send *commands* in one write and return their replies; for synchronous clients only.

        redis-py's ``execute_command`` costs four times the CPU, for features that a script does not need: encoding
        of arbitrary types, reply callbacks, telemetry and a retry loop.

        Args:
            commands: RESP-encoded.
            may_spin: Whether to poll for the reply before blocking. False if other threads wait for this exchange:
                they need the CPU that polling takes.

        Returns:
            For each command its reply, or the error that the server replied with; same order.
        """
        connection = None
        try:
            connection = self.connect()
            connection.send_packed_command(commands if len(commands) == 1 else [b"".join(commands)], check_health=False)
            if may_spin:
                self._spin_wait.wait(connection.can_read)
            replies = [_read(connection) for _ in commands]
        except BaseException:
            if connection is not None:
                connection.disconnect()  # otherwise a late reply would answer the next call
                self.release(connection)
            raise
        if not self._retain(connection, replies):
            if any(map(spoils_connection, replies)):
                connection.disconnect()
            self.release(connection)
        return replies

    async def exchange_async(self, commands: Sequence[bytes]) -> list[Any]:
        """Do the same as :meth:`exchange`, for asynchronous clients."""
        try:
            connection = await _within(self.timeout, self._connect_async())
            return await _within(self.timeout, self._exchange_over(connection, commands))
        except asyncio.TimeoutError:
            raise redis.TimeoutError(f"no answer within {self.timeout:g} s") from None

    async def _connect_async(self) -> Any:  # noqa: ANN401 - a connection
        pool = self.client.connection_pool
        while (idle := self._take_idle()) is not None:
            if self._is_fresh(idle):
                return idle.connection
            self._pooled_at[idle.connection] = idle.used_at
            await pool.release(idle.connection)
        connection = await pool.get_connection(*_GET_CONNECTION_ARGS)
        if self._was_idle_for_long(connection):
            try:
                await connection.disconnect(nowait=True)
                await connection.connect()
            except BaseException:
                await pool.release(connection)
                raise
        return connection

    async def _exchange_over(self, connection: Any, commands: Sequence[bytes]) -> list[Any]:  # noqa: ANN401
        pool = self.client.connection_pool
        try:
            await connection.send_packed_command([b"".join(commands)], check_health=False)
            replies = [await _read_async(connection) for _ in commands]
        except BaseException:
            await connection.disconnect(nowait=True)
            await pool.release(connection)
            raise
        if not self._retain(connection, replies):
            if any(map(spoils_connection, replies)):
                await connection.disconnect(nowait=True)
            self._pooled_at[connection] = self.clock()
            await pool.release(connection)
        return replies

    def connect(self) -> Any:  # noqa: ANN401 - a connection
        """Return an open connection; the caller returns it to :meth:`release`."""
        while (idle := self._take_idle()) is not None:
            if self._is_fresh(idle):
                return idle.connection
            self.release(idle.connection, idle.used_at)
        connection = self.client.connection_pool.get_connection(*_GET_CONNECTION_ARGS)
        if self._was_idle_for_long(connection):
            try:
                connection.disconnect()
                connection.connect()
            except BaseException:
                self.release(connection)
                raise
        return connection

    def release(self, connection: Any, used_at: float | None = None) -> None:  # noqa: ANN401
        """Return *connection*, which was last used at *used_at*, by default now, to the pool."""
        self._pooled_at[connection] = self.clock() if used_at is None else used_at
        self.client.connection_pool.release(connection)

    @property
    def max_connections(self) -> int:
        """Number of connections that this server may have."""
        return int(self.client.connection_pool.max_connections)

    def release_idle(self) -> None:
        """Return the idle connections to the pool; for synchronous clients only."""
        while (idle := self._take_idle()) is not None:
            self.release(idle.connection, idle.used_at)

    def close(self) -> None:
        """Close the connections that no call uses; the next call opens new ones."""
        self.release_idle()
        for pool in self.pools:
            if isinstance(pool, redis.BlockingConnectionPool):
                pool.disconnect()  # redis-py 5's blocking pool has no inuse_connections argument
            else:
                pool.disconnect(inuse_connections=False)

    def _retain(self, connection: Any, replies: Sequence[Any]) -> bool:  # noqa: ANN401
        """
        Keep *connection*, which delivered *replies*, for the next call; return whether it was kept.

        Returning it to the pool and taking it out again costs as much as a call, because the pool checks whether the
        server has closed the connection. Two cases go back to the pool all the same: connections of a blocking pool,
        because its other callers wait for them, and those that replied with an error.
        """
        if self.is_blocking_pool:
            return False
        for reply in replies:
            if isinstance(reply, ResponseError) and not isinstance(reply, NoScriptError):
                return False
        self._idle.append(_IdleConnection(connection, self.clock()))
        return True

    def _is_fresh(self, idle: _IdleConnection) -> bool:
        """Return whether the last reply is so recent that the server cannot have restarted since."""
        return self.clock() - idle.used_at < _FRESHNESS

    def _was_idle_for_long(self, connection: Any) -> bool:  # noqa: ANN401
        """Return whether *connection*, just taken from the pool, may have been dropped without a word."""
        used_at = self._pooled_at.pop(connection, None)
        return used_at is not None and self.clock() - used_at >= self.max_idle

    def _take_idle(self) -> _IdleConnection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None


class _IdleConnection(NamedTuple):
    """An open connection, and the time of its last reply in seconds of the node's clock."""

    connection: Any
    used_at: float


async def _within(seconds: float, awaited: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Await *awaited* for at most *seconds*; then raise ``asyncio.TimeoutError``."""
    if sys.version_info >= (3, 11):  # wait_for() of Python 3.11 and older starts a task for each call
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
