"""
Which server runs some scripts, and what to do about its answers. No I/O: generators yield what to ask whom.

The runners of :mod:`bucketflow.redis_client.runner` put the questions, for threads and for coroutines. A call is
repeated only after an answer which proves that nothing was executed: NOSCRIPT, MOVED.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol

import redis
from redis.crc import key_slot
from redis.exceptions import MovedError, NoScriptError, RedisError

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.encoding import pack
from bucketflow.redis_client.private_clients import Address, Driver, is_cluster, node_at, node_of, nodes_of_cluster
from bucketflow.redis_client.scripts import Script

__all__ = ["FAILURES", "CallPlan", "Exchange", "ScriptCall", "Topology", "advance", "topology_of", "unavailable"]

#: What a driver raises when a server is away, slow or unwilling.
FAILURES = (RedisError, OSError)

#: A slot that moves more often than this within one call is a cluster at odds with itself.
_REDIRECTIONS = 3

_CLUSTER_SLOTS = pack(("CLUSTER", "SLOTS"))


class ScriptCall(NamedTuple):
    """
    One run of a script.

    Attributes:
        script: The operation.
        keys: Every key it touches, at least one; on a cluster all of one slot.
        args: Its other arguments, numbers as :func:`bucketflow.redis_client.encoding.exact` writes them, or packed.
        packed: The whole as ``EVALSHA`` in the form of the Redis protocol.
        made_at: When it was made, for whoever made it.
    """

    script: Script
    keys: Sequence[bytes]
    args: Sequence[str | bytes]
    packed: bytes
    made_at: int = 0

    @classmethod
    def of(cls, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes], made_at: int = 0) -> ScriptCall:
        """Return the call, packed."""
        return cls(script, keys, args, pack(("EVALSHA", script.sha, len(keys), *keys, *args)), made_at)

    def with_text(self) -> bytes:
        """Return the call as ``EVAL``, which runs the script and keeps it."""
        return pack(("EVAL", self.script.text, len(self.keys), *self.keys, *self.args))


class Exchange(NamedTuple):
    """What to send to which server at once, next: commands in the form of the Redis protocol, length >= 1."""

    node: Node
    commands: list[bytes]


#: Receives the outcomes of a exchange, same length and order: replies, or errors of the server. Returns a reply, or
#: ``StoreUnavailable``, for each of its calls.
CallPlan = Generator[Exchange, list[Any], list[Any]]


class Topology(Protocol):
    """Where the calls of one client go."""

    nodes: dict[Address, Node]

    @property
    def only(self) -> Node | None:
        """The node that every call goes to, if there is but one."""

    def failed(self, address: Address) -> None:
        """Take note that a node did not answer."""

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """Return the way of *calls*, length >= 1; on a cluster their keys are of one slot."""


def _evaluate(node: Node, calls: Sequence[ScriptCall]) -> CallPlan:
    outcomes = yield Exchange(node, [call.packed for call in calls])
    unknown = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, NoScriptError)]
    if unknown:  # the server was restarted or flushed
        again = yield Exchange(node, [calls[place].with_text() for place in unknown])
        for place, outcome in zip(unknown, again, strict=True):
            outcomes[place] = outcome
    return outcomes


def unavailable(node: Node, error: Exception) -> StoreUnavailable:
    """Return what a caller is told of *error*, which is its cause."""
    unavailable = StoreUnavailable(node.label, str(error) or type(error).__name__)
    unavailable.__cause__ = error
    return unavailable


def _final(node: Node, outcomes: list[Any]) -> list[Any]:
    return [unavailable(node, outcome) if isinstance(outcome, Exception) else outcome for outcome in outcomes]


class SingleNode:
    """One server, or the master that Sentinel names."""

    def __init__(self, driver: Driver, client: object, timeout: float) -> None:
        self.only = node_of(driver, client, timeout)
        self.nodes = {("", 0): self.only}

    def failed(self, address: Address) -> None:
        """There is no other."""

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """See :class:`Topology`."""
        return _final(self.only, (yield from _evaluate(self.only, calls)))


class ClusterNodes:
    """
    The nodes of a cluster, and which of them answers for which slot, as far as they said so.

    redis-py's own cluster client would repeat a call after an error that proves nothing, and asks for the topology
    without our deadline. This one asks when it has to: at first, and after any error.
    """

    only = None

    def __init__(self, driver: Driver, client: Any, timeout: float) -> None:  # noqa: ANN401 - of either half
        self._driver, self._client, self._timeout = driver, client, timeout
        self.nodes = nodes_of_cluster(driver, client, timeout)
        self._first = frozenset(self.nodes)
        self._owners: dict[int, Address] = {}

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """See :class:`Topology`."""
        slot, results = key_slot(calls[0].keys[0]), dict[int, Any]()
        left = list(range(len(calls)))
        for _ in range(1 + _REDIRECTIONS):
            address = self._owners.get(slot) or (yield from self._learn(slot))
            node = self._node(address)
            try:
                outcomes = yield from _evaluate(node, [calls[place] for place in left])
            except FAILURES:
                self._doubt(address)
                raise
            results |= zip(left, _final(node, outcomes), strict=True)
            errors: dict[int, Any] = {
                place: error for place, error in zip(left, outcomes, strict=True) if isinstance(error, Exception)
            }
            left = [place for place, error in errors.items() if isinstance(error, MovedError)]
            if len(left) < len(errors):
                self._doubt(address)
            if not left:
                break
            self._owners[slot] = (errors[left[0]].host or address[0], errors[left[0]].port)
        return [results[place] for place in range(len(calls))]

    def _doubt(self, address: Address) -> None:
        self._owners = {}
        self.failed(address)

    def _node(self, address: Address) -> Node:
        node = self.nodes.get(address)
        if node is None:
            made = node_at(self._driver, self._client, address, self._timeout)
            node = self.nodes.setdefault(address, made)  # another thread may have been quicker
        return node

    def failed(self, address: Address) -> None:
        """Move a node that failed to the end of those :meth:`_learn` asks."""
        node = self.nodes.pop(address, None)
        if node is not None:  # another thread may have forgotten it
            self.nodes[address] = node

    def _learn(self, slot: int) -> Generator[Exchange, Any, Address]:
        """AdmissionRequest who has which slots, from the first node that answers; return the owner of *slot*."""
        error: Exception = RedisError("it knows no node")
        for address, node in list(self.nodes.items()):
            try:
                (ranges,) = yield Exchange(node, [_CLUSTER_SLOTS])
                if isinstance(ranges, Exception):
                    raise ranges
                self._take_down(address, ranges)
            except FAILURES as raised:
                error = raised
                self.failed(address)
                if isinstance(raised, redis.TimeoutError):  # the caller has waited long enough
                    break
            else:
                owner = self._owners.get(slot)
                if owner is not None:
                    return owner
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
            self.nodes.pop(address, None)
        self._owners = owners


def topology_of(driver: Driver, client: object, timeout: float) -> Topology:
    """Return where the calls of *client* go."""
    return (ClusterNodes if is_cluster(driver, client) else SingleNode)(driver, client, timeout)


def advance(plan: CallPlan, exchange: Exchange, outcome: list[Any] | Exception) -> Exchange:
    """
    Tell *plan* what came of *exchange*: an outcome for each command, or why there is none; return its next exchange.

    Raises:
        StopIteration: It is done; ``value`` has the reply of each call, or ``StoreUnavailable``.
        StoreUnavailable: It has no further exchange, and no reply.
    """
    if not isinstance(outcome, Exception):
        return plan.send(outcome)
    try:
        return plan.throw(outcome)
    except FAILURES as final:
        raise unavailable(exchange.node, final) from final
