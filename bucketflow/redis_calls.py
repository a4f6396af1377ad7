"""
Run a script on the user's Redis: one round trip, an explicit deadline, and never twice.

What happens is written once, as generators that yield what to ask whom; two short loops run them, one for threads and
one for coroutines. A question is repeated only after an answer which proves that nothing was executed: NOSCRIPT, MOVED.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import redis
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import MovedError, NoScriptError, RedisError

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import check_number
from bucketflow.redis_clients import (
    ASYNC,
    SYNC,
    Address,
    AsyncClient,
    Client,
    Driver,
    Node,
    is_cluster,
    node_at,
    node_of,
    nodes_of_cluster,
)
from bucketflow.scripts import Script

__all__ = ["FAILURES", "AsyncScriptRunner", "Plan", "Question", "ScriptRunner", "Subscription", "proceed"]

#: What a driver raises when a server is away, slow or unwilling.
FAILURES = (RedisError, OSError)

#: A slot that moves more often than this within one call is a cluster at odds with itself.
_REDIRECTIONS = 3


class Question(NamedTuple):
    """What to ask whom, next."""

    node: Node
    command: tuple[Any, ...]


Plan = Generator[Question, Any, Any]


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


class _Route(Protocol):
    nodes: dict[Address, Node]

    def failed(self, address: Address) -> None:
        """Take note that a node did not answer."""

    def plan(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Plan:
        """Yield questions, receive their answers or errors, return the script's reply."""


def _evaluate(node: Node, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Plan:
    try:
        return (yield Question(node, ("EVALSHA", script.sha, len(keys), *keys, *args)))
    except NoScriptError:  # the server was restarted or flushed; EVAL runs the script and keeps it
        return (yield Question(node, ("EVAL", script.text, len(keys), *keys, *args)))


class _Single:
    """One server, or the master that Sentinel names."""

    def __init__(self, driver: Driver, client: object, timeout: float) -> None:
        self._node = node_of(driver, client, timeout)
        self.nodes = {("", 0): self._node}

    def failed(self, address: Address) -> None:
        """There is no other."""

    def plan(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Plan:
        return _evaluate(self._node, script, keys, args)


class _Cluster:
    """
    The nodes of a cluster, and which of them answers for which slot, as far as they said so.

    redis-py's own cluster client would repeat a call after an error that proves nothing, and asks for the topology
    without our deadline. This one asks when it has to: at first, and after any error.
    """

    def __init__(self, driver: Driver, client: Any, timeout: float) -> None:  # noqa: ANN401 - of either half
        self._driver, self._client, self._timeout = driver, client, timeout
        self.nodes = nodes_of_cluster(driver, client, timeout)
        self._first = frozenset(self.nodes)
        self._owners: dict[int, Address] = {}

    def plan(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Plan:
        slot, moves = key_slot(keys[0]), 0
        while True:
            address = self._owners.get(slot)
            if address is None:
                address = yield from self._learn(slot)
            try:
                return (yield from _evaluate(self._node(address), script, keys, args))
            except MovedError as moved:
                moves += 1
                if moves > _REDIRECTIONS:
                    raise
                self._owners[slot] = (moved.host or address[0], moved.port)
            except FAILURES:
                self._owners = {}
                self.failed(address)
                raise

    def _node(self, address: Address) -> Node:
        if address not in self.nodes:
            self.nodes[address] = node_at(self._driver, self._client, address, self._timeout)
        return self.nodes[address]

    def failed(self, address: Address) -> None:
        # It is asked last from now on.
        """Move a node that failed to the end of those :meth:`_learn` asks."""
        node = self.nodes.pop(address, None)
        if node is not None:  # another thread may have forgotten it
            self.nodes[address] = node

    def _learn(self, slot: int) -> Generator[Question, Any, Address]:
        """Ask who has which slots, from the first node that answers; return the owner of *slot*."""
        error: Exception = RedisError("it knows no node")
        for address, node in list(self.nodes.items()):
            try:
                self._take_down(address, (yield Question(node, ("CLUSTER", "SLOTS"))))
            except FAILURES as raised:
                error = raised
                self.failed(address)
                if isinstance(raised, redis.TimeoutError):  # the caller has waited long enough
                    break
            else:
                if slot in self._owners:
                    return self._owners[slot]
                error = RedisError(f"no node has slot {slot}")
        raise error

    def _take_down(self, source: Address, ranges: Any) -> None:  # noqa: ANN401 - a reply
        """Note the owners and nodes of CLUSTER SLOTS; forget nodes that have left, but never how it began."""
        owners: dict[int, Address] = {}
        announced = set(self._first)
        for first, last, *nodes in ranges:
            # A node that does not know its own name sends none: it is the one asked.
            addresses = [(host.decode() if host else source[0], port) for host, port, *_ in nodes]
            owners |= dict.fromkeys(range(first, last + 1), addresses[0])
            announced.update(addresses)
        for address in announced:
            self._node(address)
        for address in set(self.nodes) - announced:
            del self.nodes[address]
        self._owners = owners


def _route(driver: Driver, client: object, timeout: float) -> _Route:
    return (_Cluster if is_cluster(driver, client) else _Single)(driver, client, timeout)


def _check_timeout(timeout: float) -> float:
    return check_number("timeout", timeout, "seconds above 0", above=True)


def _unavailable(question: Question, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(question.node.label, str(error) or type(error).__name__)


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
        self._route = _route(SYNC, client, self._timeout)

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
            args: Its other arguments, numbers as :func:`bucketflow.scripts.exact` writes them.

        Returns:
            Its reply, strings as bytes.

        Raises:
            StoreUnavailable: Redis is away, did not answer in time, or answered with an error. Whether the script
                ran is unknown; it was not repeated.
        """
        plan = self.plan(script, keys, args)
        question = next(plan)
        try:
            while True:
                try:
                    outcome = question.node.call(question.command)
                except FAILURES as error:
                    outcome = error
                question = proceed(plan, question, outcome)
        except StopIteration as finished:
            return finished.value

    def plan(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Plan:
        """Return the questions of a call, for a caller that must not wait for their answers; see :func:`proceed`."""
        return self._route.plan(script, keys, args)

    @contextmanager
    def subscribe(self, channel: str) -> Iterator[Subscription]:
        """
        Return a context manager that yields a subscription to *channel*, on a connection of its own.

        Raises:
            StoreUnavailable: Redis is away; also raised by the subscription.
        """
        address, node = next(iter(list(self._route.nodes.items())))
        pubsub = node.client.pubsub(ignore_subscribe_messages=True)
        try:
            pubsub.subscribe(channel)
            yield Subscription(pubsub)
        except FAILURES as error:
            self._route.failed(address)
            raise StoreUnavailable(node.label, str(error) or type(error).__name__) from error
        finally:
            pubsub.close()

    def close(self) -> None:
        """Close the connections. The next call opens new ones."""
        for node in list(self._route.nodes.values()):
            for pool in node.pools:
                pool.disconnect()

    def after_fork(self) -> None:
        """Leave the parent's connections to the parent; the child opens its own."""
        self._route = _route(SYNC, self._client, self._timeout)


class AsyncScriptRunner:
    """
    :class:`ScriptRunner` for coroutines, in any number of event loops, one after another or at once.

    Args:
        client: ``redis.asyncio.Redis`` or ``redis.asyncio.RedisCluster``; see :class:`ScriptRunner`.
        timeout: See :class:`ScriptRunner`.
    """

    def __init__(self, client: AsyncClient, timeout: float = 1.0) -> None:
        is_cluster(ASYNC, client)
        self._client = client
        self._timeout = _check_timeout(timeout)
        self._routes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Route] = WeakKeyDictionary()

    async def run(self, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> Any:  # noqa: ANN401
        """See :meth:`ScriptRunner.run`. Whether a cancelled call ran the script is unknown, too."""
        plan = self._route().plan(script, keys, args)
        question = next(plan)
        try:
            while True:
                try:
                    outcome = await question.node.client.execute_command(*question.command)
                except FAILURES as error:
                    outcome = error
                question = proceed(plan, question, outcome)
        except StopIteration as finished:
            return finished.value

    async def close(self) -> None:
        """Close the connections of this event loop. The next call opens new ones."""
        route = self._routes.pop(asyncio.get_running_loop(), None)
        for node in list(route.nodes.values()) if route else []:
            for pool in node.pools:
                await pool.disconnect()

    def _route(self) -> _Route:
        loop = asyncio.get_running_loop()
        route = self._routes.get(loop)
        if route is None:
            route = self._routes[loop] = _route(ASYNC, self._client, self._timeout)
        return route


def proceed(plan: Plan, question: Question, outcome: Any) -> Question:  # noqa: ANN401 - a reply or an error
    """
    Tell *plan* what came of *question*, a reply or one of :data:`FAILURES`; return its next question.

    Raises:
        StopIteration: It is done; ``value`` is the script's reply.
        StoreUnavailable: It has no further question.
    """
    if not isinstance(outcome, Exception):
        return plan.send(outcome)
    try:
        return plan.throw(outcome)
    except FAILURES as final:
        raise _unavailable(question, final) from final
