"""
Execution of scripts on the user's Redis: one round trip a call, an explicit timeout, no retries.

:mod:`bucketflow.redis_client.topology` decides where a call goes and what an error means. The runners here perform
its exchanges, one class for threads and one for coroutines.
:mod:`bucketflow.redis_client.batching` combines concurrent calls of one runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from redis.exceptions import RedisError

from bucketflow.errors import StoreUnavailable
from bucketflow.fork import reset_after_fork
from bucketflow.redis_client.batching import AsyncBatcher, ThreadBatcher
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.private_clients import ASYNC, SYNC, AsyncClient, Client, is_cluster
from bucketflow.redis_client.replies import is_unexecuted
from bucketflow.redis_client.scripts import Script
from bucketflow.redis_client.subscription import Subscription, subscription_to
from bucketflow.redis_client.topology import FAILURES, CallPlan, ScriptCall, Topology, advance, topology_of, unavailable
from bucketflow.redis_client.url import parse_url
from bucketflow.redis_client.url_clients import client_at
from bucketflow.validation import check_number

__all__ = ["AsyncScriptRunner", "ScriptRunner", "Subscription"]


#: A batch's leader counts as lost after this many timeouts. A healthy one may have to connect, discover the slot's
#: owner, and repeat the call with the script's text.
_LEADER_TIMEOUTS = 10


def _check_timeout(timeout: float) -> float:
    return check_number("timeout", timeout, "seconds above 0", above=True)


ReplyT = TypeVar("ReplyT")


def _single_result(results: Sequence[ReplyT | StoreUnavailable]) -> ReplyT:
    """Return the single result, or raise it if it is an error."""
    (result,) = results
    if isinstance(result, StoreUnavailable):
        raise result
    return result


def _checked(node: Node, call: ScriptCall, reply: Any) -> Any:  # noqa: ANN401 - of any type
    """Return the *reply* to *call*, or raise ``StoreUnavailable`` if the server replied with an error."""
    if isinstance(reply, Exception):
        raise unavailable(node, reply, call.script) from reply
    return reply


class ScriptRunner:
    """
    Runs scripts on the Redis of *client*, over private connections. Thread-safe.

    Args:
        client: ``redis.Redis``, also from a Sentinel or with a pool of any kind, or ``redis.RedisCluster``. The runner
            only reads its connection settings.
        timeout: Seconds a server may take to accept a connection, and to reply.

    Raises:
        ConfigError: *client* is not such a client, or is connected to replicas; *timeout* is not a number above 0.
    """

    def __init__(self, client: Client, timeout: float = 1.0) -> None:
        self._client = client
        self._timeout = _check_timeout(timeout)
        self._is_cluster = is_cluster(SYNC, client)
        self._topology = topology_of(SYNC, client, self._timeout)
        self._batchers: dict[int, ThreadBatcher] = {}
        reset_after_fork(self)

    @classmethod
    def from_url(cls, url: str, timeout: float = 1.0) -> ScriptRunner:
        """Return a runner for the servers at *url*. Raises ``ConfigError``: see :func:`~.url.parse_url`."""
        return cls(client_at(SYNC, parse_url(url)), timeout)

    def run(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401 - depends on the script
        """
        Run *script* once.

        Args:
            script: The script to run.
            keys: Every key that the script touches, length >= 1; on a cluster all in one slot.
            args: Its other arguments, numbers as :func:`bucketflow.redis_client.encoding.exact` writes them.

        Returns:
            The script's reply, strings as bytes.

        Raises:
            StoreUnavailable: Redis is unreachable, did not reply in time, or replied with an error. Whether the
                script ran is unknown; it was not repeated.
        """
        return self.run_call(ScriptCall.of(script, keys, args))

    def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - see run
        """Run *call* once, see :meth:`run`."""
        node = self._topology.sole_node
        if node is not None:  # a single server that has cached the script needs no plan: nearly every call ends here
            try:
                (reply,) = node.exchange([call.packed], may_spin=True)
            except FAILURES as error:
                raise unavailable(node, error) from error
            if not (isinstance(reply, RedisError) and is_unexecuted(reply)):
                return _checked(node, call, reply)
        return _single_result(self.run_all([call]))

    def run_all(self, calls: Sequence[ScriptCall]) -> list[Any]:
        """
        Run several calls, each once, in one round trip.

        Args:
            calls: Length >= 1; on a cluster all their keys are in one slot.

        Returns:
            For each call its reply or ``StoreUnavailable``; same order. See :meth:`run`.
        """
        plan = self._topology.plan(calls)
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
        """Return the plan of one call, for a caller that does not block on its exchanges; see :func:`advance`."""
        return self._topology.plan([ScriptCall.of(script, keys, args)])

    def batcher(self, slot: int) -> ThreadBatcher:
        """
        Return the batcher of *slot*.

        On a cluster each slot has its own, because two slots may belong to different servers.
        """
        slot = slot if self._is_cluster else 0
        return self._batchers.get(slot) or self._batchers.setdefault(
            slot, ThreadBatcher(self.run_call, self.run_all, _LEADER_TIMEOUTS * self._timeout)
        )

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Subscription]:
        """
        Return a context manager that yields a subscription to *channel*, on a separate connection.

        A runner that may have one connection only has none to spare: its subscription is silent.

        Raises:
            StoreUnavailable: Redis is unreachable; :meth:`Subscription.get` raises it, too.
        """
        address, node = next(iter(list(self._topology.nodes.items())))
        try:
            with subscription_to(node, channel) as subscription:
                yield subscription
        except FAILURES as error:
            self._topology.on_failure(address)
            raise unavailable(node, error) from error

    @property
    def max_connections(self) -> int:
        """The number of connections that calls to one server may have."""
        return min(node.max_connections for node in list(self._topology.nodes.values()))

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        for node in list(self._topology.nodes.values()):
            node.close()

    def after_fork(self) -> None:
        """Drop the connections and pending calls of the parent process; called in each forked child."""
        self.__dict__.pop("_topology", None)  # the next call makes another: most children make none
        for batcher in self._batchers.values():
            batcher.reset()

    @cached_property
    def _topology(self) -> Topology:
        return topology_of(SYNC, self._client, self._timeout)


class _LoopState:
    """State of an :class:`AsyncScriptRunner` in one event loop: connections belong to the loop that opened them."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.batchers: dict[int, AsyncBatcher] = {}


class AsyncScriptRunner:
    """
    Runs scripts for coroutines, in any number of event loops, consecutive or concurrent.

    The counterpart of :class:`ScriptRunner`.

    Args:
        client: ``redis.asyncio.Redis`` or ``redis.asyncio.RedisCluster``; see :class:`ScriptRunner`.
        timeout: See :class:`ScriptRunner`.
    """

    def __init__(self, client: AsyncClient, timeout: float = 1.0) -> None:
        self._is_cluster = is_cluster(ASYNC, client)
        self._client = client
        self._timeout = _check_timeout(timeout)
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopState] = WeakKeyDictionary()

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401
        """See :meth:`ScriptRunner.run`. Whether the script of a cancelled call ran is unknown."""
        return await self.run_call(ScriptCall.of(script, keys, args))

    async def run_call(self, call: ScriptCall) -> Any:  # noqa: ANN401 - see run
        """See :meth:`ScriptRunner.run_call`."""
        node = self._loop_state().topology.sole_node
        if node is not None:
            try:
                (reply,) = await node.exchange_async([call.packed])
            except FAILURES as error:
                raise unavailable(node, error) from error
            if not (isinstance(reply, RedisError) and is_unexecuted(reply)):
                return _checked(node, call, reply)
        return _single_result(await self.run_all([call]))

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
        return self._loop_state().topology.plan(calls)

    def batcher(self, slot: int) -> AsyncBatcher:
        """See :meth:`ScriptRunner.batcher`; each event loop has its own."""
        slot, batchers = slot if self._is_cluster else 0, self._loop_state().batchers
        return batchers.get(slot) or batchers.setdefault(slot, AsyncBatcher(self.run_call, self.run_all))

    async def close(self) -> None:
        """Close the connections of this event loop. The next call opens new ones."""
        state = self._loops.pop(asyncio.get_running_loop(), None)
        for node in list(state.topology.nodes.values()) if state else []:
            for pool in node.pools:
                await pool.disconnect()

    def _loop_state(self) -> _LoopState:
        loop = asyncio.get_running_loop()
        state = self._loops.get(loop)
        if state is None:
            # A closed loop's state refers to the loop, so the weak key alone would never be collected.
            for closed in [known for known in self._loops if known.is_closed()]:
                self._loops.pop(closed, None)
            state = self._loops[loop] = _LoopState(topology_of(ASYNC, self._client, self._timeout))
        return state
