"""
Run scripts on the user's Redis: one round trip, an explicit deadline, and never twice.

Where a call goes, and what an error means for it, is written once in :mod:`bucketflow.redis_client.topology`; here
two short loops put its questions, one for threads and one for coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.exceptions import NoScriptError

from bucketflow.errors import StoreUnavailable
from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.batching import AsyncBatcher, ThreadBatcher
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.private_clients import ASYNC, SYNC, AsyncClient, Client, is_cluster
from bucketflow.redis_client.scripts import Script
from bucketflow.redis_client.topology import FAILURES, CallPlan, ScriptCall, Topology, advance, topology_of, unavailable
from bucketflow.validation import check_number

__all__ = ["AsyncScriptRunner", "ScriptRunner", "Subscription"]


class Subscription:
    """
    A subscription to one channel.

    Args:
        pubsub: Of redis-py, subscribed.
    """

    def __init__(self, pubsub: Any) -> None:  # noqa: ANN401 - redis-py's
        self._pubsub = pubsub

    def get(self, timeout: float) -> bytes | None:
        """Return what is published next, ``None`` if that takes longer than *timeout* seconds."""
        message = self._pubsub.get_message(timeout=timeout)
        return None if message is None else message["data"]


#: Exchanges that a call may take: it must connect, find out whom to ask, and be repeated with the script's text.
_PATIENCE = 10


def _check_timeout(timeout: float) -> float:
    return check_number("timeout", timeout, "seconds above 0", above=True)


ReplyT = TypeVar("ReplyT")


def _only(results: Sequence[ReplyT | StoreUnavailable]) -> ReplyT:
    """Return the only result, or raise it."""
    (result,) = results
    if isinstance(result, StoreUnavailable):
        raise result
    return result


def _checked(node: Node, reply: Any) -> Any:  # noqa: ANN401 - the script knows
    """Return *reply*, or raise it if it is an error of the server."""
    if isinstance(reply, Exception):
        raise unavailable(node, reply) from reply
    return reply


class ScriptRunner:
    """
    Runs scripts on the Redis of *client*, over connections of its own. Threads may share it.

    Args:
        client: ``redis.Redis``, also from a Sentinel or with a pool of any kind, or ``redis.RedisCluster``. It is read
            for where and how to connect, and not used otherwise.
        timeout: Seconds a server may take to accept a connection, and to answer.

    Raises:
        ConfigError: *client* is another thing, or a replica's; *timeout* is no number above 0.
    """

    def __init__(self, client: Client, timeout: float = 1.0) -> None:
        self._client = client
        self._timeout = _check_timeout(timeout)
        self._is_cluster = is_cluster(SYNC, client)
        self._made: Topology | None = topology_of(SYNC, client, self._timeout)
        self._batchers: dict[int, ThreadBatcher] = {}
        reset_after_fork(self)

    @classmethod
    def from_url(cls, url: str, timeout: float = 1.0) -> ScriptRunner:
        """Return a runner for the single server at *url*; ``ValueError`` if that cannot be read."""
        return cls(redis.Redis.from_url(url), timeout)

    def run(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401 - the script knows
        """
        Run *script* once.

        Args:
            script: The operation.
            keys: Every key it touches, at least one; on a cluster all of one slot.
            args: Its other arguments, numbers as :func:`bucketflow.redis_client.encoding.exact` writes them.

        Returns:
            Its reply, strings as bytes.

        Raises:
            StoreUnavailable: Redis is away, did not answer in time, or answered with an error. Whether the script
                ran is unknown; it was not repeated.
        """
        return self.run_call(ScriptCall.of(script, keys, args))

    def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - see run
        """Run a script once, see :meth:`run`."""
        node = self._topology.only
        if node is not None:  # one server that knows the script needs no plan: nearly every call ends here
            try:
                (reply,) = node.exchange([call.packed], alone=True)
            except FAILURES as error:
                raise unavailable(node, error) from error
            if not isinstance(reply, NoScriptError):
                return _checked(node, reply)
        return _only(self.run_all([call]))

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """
        Run several calls, each once, in one round trip.

        Args:
            calls: Length >= 1; on a cluster their keys are of one slot.

        Returns:
            Its reply, or ``StoreUnavailable``, for each call; same order. See :meth:`run`.
        """
        plan = self._plan(calls)
        exchange = next(plan)
        outcome: list[Any] | Exception
        try:
            while True:
                try:
                    outcome = exchange.node.exchange(exchange.commands)
                except FAILURES as error:
                    outcome = error
                exchange = advance(plan, exchange, outcome)
        except StopIteration as finished:
            return list(finished.value)
        except StoreUnavailable as error:
            return [error] * len(calls)

    def plan(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> CallPlan:
        """Return the way of one call, for a caller that must not wait for the answer; see :func:`advance`."""
        return self._plan([ScriptCall.of(script, keys, args)])

    def _plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        return self._topology.plan(calls)

    def batcher(self, slot: int) -> ThreadBatcher:
        """Return what puts the questions of the buckets in *slot*: on a cluster others may be on another server."""
        slot = slot if self._is_cluster else 0
        return self._batchers.get(slot) or self._batchers.setdefault(
            slot, ThreadBatcher(self.run_call, self.run_all, _PATIENCE * self._timeout)
        )

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Subscription]:
        """
        Return a context manager that yields a subscription to *channel*, on a connection of its own.

        Raises:
            StoreUnavailable: Redis is away; also raised by the subscription.
        """
        address, node = next(iter(list(self._topology.nodes.items())))
        node.release_idle()  # or a small pool would have none left
        pubsub = node.client.pubsub(ignore_subscribe_messages=True)
        try:
            pubsub.subscribe(channel)
            yield Subscription(pubsub)
        except FAILURES as error:
            self._topology.failed(address)
            raise unavailable(node, error) from error
        finally:
            pubsub.close()

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        for node in list(self._topology.nodes.values()):
            node.close()

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent, and its calls; every fork does so by itself."""
        self._made = None
        for batcher in self._batchers.values():
            batcher.reset()

    @property
    def _topology(self) -> Topology:
        topology = self._made
        if topology is None:
            topology = self._made = topology_of(SYNC, self._client, self._timeout)
        return topology


class _Here:
    """What an :class:`AsyncScriptRunner` has in one event loop."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.batchers: dict[int, AsyncBatcher] = {}


class AsyncScriptRunner:
    """
    :class:`ScriptRunner` for coroutines, in any number of event loops, one after another or at once.

    Args:
        client: ``redis.asyncio.Redis`` or ``redis.asyncio.RedisCluster``; see :class:`ScriptRunner`.
        timeout: See :class:`ScriptRunner`.
    """

    def __init__(self, client: AsyncClient, timeout: float = 1.0) -> None:
        self._is_cluster = is_cluster(ASYNC, client)
        self._client = client
        self._timeout = _check_timeout(timeout)
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Here] = WeakKeyDictionary()

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401
        """See :meth:`ScriptRunner.run`. Whether a cancelled call ran the script is unknown, too."""
        return await self.run_call(ScriptCall.of(script, keys, args))

    async def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - see run
        """See :meth:`ScriptRunner.run_call`."""
        node = self._here().topology.only
        if node is not None:
            try:
                (reply,) = await node.exchange_async([call.packed])
            except FAILURES as error:
                raise unavailable(node, error) from error
            if not isinstance(reply, NoScriptError):
                return _checked(node, reply)
        return _only(await self.run_all([call]))

    async def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """See :meth:`ScriptRunner.run_all`."""
        plan = self._plan(calls)
        exchange = next(plan)
        outcome: list[Any] | Exception
        try:
            while True:
                try:
                    outcome = await exchange.node.exchange_async(exchange.commands)
                except FAILURES as error:
                    outcome = error
                exchange = advance(plan, exchange, outcome)
        except StopIteration as finished:
            return list(finished.value)
        except StoreUnavailable as error:
            return [error] * len(calls)

    def _plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        return self._here().topology.plan(calls)

    def batcher(self, slot: int) -> AsyncBatcher:
        """See :meth:`ScriptRunner.batcher`; of this event loop."""
        slot, batchers = slot if self._is_cluster else 0, self._here().batchers
        return batchers.get(slot) or batchers.setdefault(slot, AsyncBatcher(self.run_call, self.run_all))

    async def close(self) -> None:
        """Close the connections of this event loop. The next call opens new ones."""
        here = self._loops.pop(asyncio.get_running_loop(), None)
        for node in list(here.topology.nodes.values()) if here else []:
            for pool in node.pools:
                await pool.disconnect()

    def _here(self) -> _Here:
        loop = asyncio.get_running_loop()
        here = self._loops.get(loop)
        if here is None:
            for other in [other for other in self._loops if other.is_closed()]:
                self._loops.pop(other, None)  # it would stay: what is in it knows it
            here = self._loops[loop] = _Here(topology_of(ASYNC, self._client, self._timeout))
        return here
