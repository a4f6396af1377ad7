"""
Routing of script calls: which server runs them, and what to do about each reply.

This module does no I/O. A :data:`CallPlan` is a generator that yields the next :class:`Exchange` and receives its
outcome. The runners of :mod:`bucketflow.redis_client.runner` perform the exchanges, for threads and for coroutines.
Like redis-py and Jedis it has one class for a single server and one for a cluster.

**Invariants**

- A call is repeated only after a reply which proves that the server executed nothing: NOSCRIPT, MOVED, READONLY,
  MASTERDOWN.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol

import redis
from redis.crc import key_slot
from redis.exceptions import MovedError, OutOfMemoryError, RedisError

from bucketflow.errors import StoreAccessDenied, StoreFull, StoreUnavailable
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.encoding import pack
from bucketflow.redis_client.permissions import denied_command, is_denied
from bucketflow.redis_client.private_clients import Address, Driver, is_cluster, node_at, node_of, nodes_of_cluster
from bucketflow.redis_client.replies import NO_STRUCT, is_unexecuted, reason_of
from bucketflow.redis_client.scripts import Script

__all__ = ["FAILURES", "CallPlan", "Exchange", "ScriptCall", "Topology", "advance", "topology_of", "unavailable"]

#: Errors that redis-py raises when a server is unreachable, slow or refuses a command.
FAILURES = (RedisError, OSError)

#: Maximum number of MOVED redirections in one call. More mean that the nodes disagree about the slot's owner.
_MAX_REDIRECTIONS = 3

_CLUSTER_SLOTS = pack(("CLUSTER", "SLOTS"))


class ScriptCall(NamedTuple):
    """
    One invocation of a script.

    Attributes:
        script: The script to run.
        keys: Every key that the script touches, length >= 1; on a cluster all in one slot.
        args: The other arguments: text, numbers as :func:`bucketflow.redis_client.encoding.exact` writes them, or
            packed doubles.
        packed: The call as ``EVALSHA``, RESP-encoded.
    """

    script: Script
    keys: Sequence[bytes]
    args: Sequence[str | bytes]
    packed: bytes

    @classmethod
    def of(cls, script: Script, keys: Sequence[bytes], args: Sequence[str | bytes]) -> ScriptCall:
        """Return the call with its ``EVALSHA`` encoding."""
        return cls(script, keys, args, pack(("EVALSHA", script.sha, len(keys), *keys, *args)))

    def as_eval(self) -> bytes:
        """Encode the call as ``EVAL``, which runs the script and caches it on the server."""
        return pack(("EVAL", self.script.text, len(self.keys), *self.keys, *self.args))


class Exchange(NamedTuple):
    """
    One round trip.

    Attributes:
        node: The server to send to.
        commands: RESP-encoded commands, sent in one write; length >= 1.
    """

    node: Node
    commands: list[bytes]


#: Yields the next exchange. Receives its outcomes, length and order of the commands: a reply, or an error that the
#: server replied with. Returns a reply or ``StoreUnavailable`` for each of its calls.
CallPlan = Generator[Exchange, list[Any], list[Any]]


class Topology(Protocol):
    """
    The servers behind one client.

    Attributes:
        nodes: The known servers by address.
    """

    nodes: dict[Address, Node]

    @property
    def sole_node(self) -> Node | None:
        """The server that every call goes to, or ``None`` on a cluster."""

    def on_failure(self, address: Address) -> None:
        """Record that the node at *address* did not reply."""

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """Return the plan that runs *calls*, length >= 1; on a cluster all their keys are in one slot."""


def _evaluate(node: Node, calls: Sequence[ScriptCall]) -> CallPlan:
    outcomes = yield Exchange(node, [call.packed for call in calls])
    errors = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, RedisError)]
    unexecuted = [index for index in errors if is_unexecuted(outcomes[index])]
    if unexecuted:  # the server was restarted, its script cache flushed, or it is not the master any more
        repeated = yield Exchange(node, [calls[index].as_eval() for index in unexecuted])
        for index, outcome in zip(unexecuted, repeated, strict=True):
            outcomes[index] = outcome
    return outcomes


def unavailable(node: Node, error: Exception, script: Script | None = None) -> StoreUnavailable:
    """Return the error for callers of *node*, with *error* as its cause; *script* is what replied with it."""
    reason = reason_of(error)
    if "global 'struct'" in reason:
        reason = f"{reason.splitlines()[0]}: {NO_STRUCT}"
    unavailable: StoreUnavailable
    if is_denied(error):
        unavailable = StoreAccessDenied(node.label, reason, denied_command(error, script))
    else:
        unavailable = (StoreFull if isinstance(error, OutOfMemoryError) else StoreUnavailable)(node.label, reason)
    unavailable.__cause__ = error
    return unavailable


def _wrap_errors(node: Node, calls: Sequence[ScriptCall], outcomes: list[Any]) -> list[Any]:
    return [
        unavailable(node, outcome, call.script) if isinstance(outcome, Exception) else outcome
        for call, outcome in zip(calls, outcomes, strict=True)
    ]


class SingleNode:
    """Topology of one server, or of the master that Sentinel names."""

    def __init__(self, driver: Driver, client: object, timeout: float) -> None:
        self.sole_node = node_of(driver, client, timeout)
        self.nodes = {("", 0): self.sole_node}

    def on_failure(self, address: Address) -> None:
        """Do nothing: there is no other node to prefer."""

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """See :class:`Topology`."""
        return _wrap_errors(self.sole_node, calls, (yield from _evaluate(self.sole_node, calls)))


class ClusterNodes:
    """
    Topology of a Redis Cluster: its nodes, and the owner of each slot as last announced by a node.

    redis-py's cluster client is not used for calls. It repeats a call after errors that do not prove that nothing
    was executed, and it refreshes the topology without our deadline. This class refreshes it with ``CLUSTER SLOTS``
    when a slot's owner is unknown: at first, and after any error but MOVED, which names the owner itself.
    """

    sole_node = None

    def __init__(self, driver: Driver, client: Any, timeout: float) -> None:  # noqa: ANN401 - of either half
        self._driver, self._client, self._timeout = driver, client, timeout
        self.nodes = nodes_of_cluster(driver, client, timeout)
        self._seeds = frozenset(self.nodes)
        self._owners: dict[int, Address] = {}

    def plan(self, calls: Sequence[ScriptCall]) -> CallPlan:
        """See :class:`Topology`."""
        slot, results = key_slot(calls[0].keys[0]), dict[int, Any]()
        remaining = list(range(len(calls)))
        for _ in range(1 + _MAX_REDIRECTIONS):
            address = self._owners.get(slot) or (yield from self._discover(slot))
            node = self._node(address)
            asked = [calls[index] for index in remaining]
            try:
                outcomes = yield from _evaluate(node, asked)
            except FAILURES:
                self._forget_owners(address)
                raise
            results |= zip(remaining, _wrap_errors(node, asked, outcomes), strict=True)
            errors: dict[int, Any] = {
                index: error for index, error in zip(remaining, outcomes, strict=True) if isinstance(error, Exception)
            }
            remaining = [index for index, error in errors.items() if isinstance(error, MovedError)]
            if len(remaining) < len(errors):
                self._forget_owners(address)
            if not remaining:
                break
            self._owners[slot] = (errors[remaining[0]].host or address[0], errors[remaining[0]].port)
        return [results[index] for index in range(len(calls))]

    def _forget_owners(self, address: Address) -> None:
        self._owners = {}
        self.on_failure(address)

    def _node(self, address: Address) -> Node:
        node = self.nodes.get(address)
        if node is None:
            made = node_at(self._driver, self._client, address, self._timeout)
            node = self.nodes.setdefault(address, made)  # another thread may have added it meanwhile
        return node

    def on_failure(self, address: Address) -> None:
        """Move the node at *address* to the end of the order in which :meth:`_discover` queries nodes."""
        node = self.nodes.pop(address, None)
        if node is not None:  # another thread may have removed it
            self.nodes[address] = node

    def _discover(self, slot: int) -> Generator[Exchange, Any, Address]:
        """Query the slot owners from the first node that replies; return the owner of *slot*."""
        error: Exception = RedisError("the cluster client knows no node")
        for address, node in list(self.nodes.items()):
            try:
                (ranges,) = yield Exchange(node, [_CLUSTER_SLOTS])
                if isinstance(ranges, Exception):
                    raise ranges
                self._update(address, ranges)
            except FAILURES as raised:
                error = raised
                self.on_failure(address)
                if isinstance(raised, redis.TimeoutError):  # a second timeout would exceed the caller's deadline
                    break
            else:
                owner = self._owners.get(slot)
                if owner is not None:
                    return owner
                error = RedisError(f"no node owns slot {slot}")
        raise error

    def _update(self, source: Address, ranges: Any) -> None:  # noqa: ANN401 - a reply
        """
        Store the owners and nodes that *source* announced, and remove nodes that have left.

        The seeds stay: they are where discovery starts again once all other nodes are gone.
        """
        owners: dict[int, Address] = {}
        announced = set(self._seeds)
        for first, last, *nodes in ranges:
            # A node that does not know its own hostname omits it: then it is the node that was queried.
            addresses = [(host.decode() if host else source[0], port) for host, port, *_ in nodes]
            owners |= dict.fromkeys(range(first, last + 1), addresses[0])
            announced.update(addresses)
        for address in announced:
            self._node(address)
        for address in set(self.nodes) - announced:
            self.nodes.pop(address, None)
        self._owners = owners


def topology_of(driver: Driver, client: object, timeout: float) -> Topology:
    """Return the topology behind *client*."""
    return (ClusterNodes if is_cluster(driver, client) else SingleNode)(driver, client, timeout)


def advance(plan: CallPlan, exchange: Exchange, outcome: list[Any] | Exception) -> Exchange:
    """
    Pass the outcome of *exchange* to *plan* and return its next exchange.

    Args:
        plan: Suspended at *exchange*.
        exchange: The exchange that the plan yielded last.
        outcome: An outcome for each command, or the error that left the exchange without replies.

    Raises:
        StopIteration: The plan is complete; ``value`` holds a reply or ``StoreUnavailable`` for each call.
        StoreUnavailable: The plan gave up: it has neither a further exchange nor a reply.
    """
    try:
        return plan.throw(outcome) if isinstance(outcome, Exception) else plan.send(outcome)
    except FAILURES as final:
        raise unavailable(exchange.node, final) from final
