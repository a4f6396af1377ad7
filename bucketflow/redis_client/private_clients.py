"""
Private redis-py clients, derived from the user's client, with a deadline for each wait and no retries.

redis-py retries a call ten times by default, and a retried script may spend tokens twice. Its timeouts may be seconds,
or absent. So the library copies address, credentials and TLS settings from the user's client and opens its own
connections.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.asyncio.sentinel
import redis.retry
import redis.sentinel
from redis.backoff import NoBackoff

from bucketflow.errors import ConfigError
from bucketflow.redis_client.connection import MAX_IDLE, Node
from bucketflow.redis_client.replies import NO_STRUCT

try:
    from redis.maint_notifications import MaintNotificationsConfig
except ImportError:  # redis-py below 6.4
    MaintNotificationsConfig = None  # type: ignore[assignment, misc]

__all__ = [
    "ASYNC",
    "SYNC",
    "Address",
    "AsyncClient",
    "Client",
    "ClusterSeeds",
    "Driver",
    "is_cluster",
    "node_at",
    "node_of",
    "nodes_of_cluster",
]

Address = tuple[str, int]

# redis-py's own types take no parameters, those of types-redis do: mypy accepts either.
Client: TypeAlias = "redis.Redis | redis.RedisCluster"  # type: ignore[type-arg, unused-ignore]
AsyncClient: TypeAlias = "redis.asyncio.Redis | redis.asyncio.RedisCluster"  # type: ignore[type-arg, unused-ignore]

#: A pool for fewer connections makes its callers wait for one that is free; others raise an error at once.
_SMALL_POOL = 8

#: Settings that are not copied: they tie a connection to the user's pool, or pools do not accept them.
_NOT_COPIED = {
    "cache",
    "cache_config",
    "connection_pool",
    "event_dispatcher",
    "himport_registry",
    "maint_notifications_config",
    "maint_notifications_pool_handler",
    "maintenance_notification_hash",
    "maintenance_state",
    "orig_host_address",
    "orig_socket_connect_timeout",
    "orig_socket_timeout",
    "oss_cluster_maint_notifications_handler",
    "response_callbacks",
}


class _BriefPool(redis.ConnectionPool):
    """Pool for sentinels: closes each connection after its use. Between two failovers it would be idle for days."""

    def release(self, connection: Any) -> None:  # noqa: ANN401 - redis-py's
        """Close *connection* and return it."""
        connection.disconnect()
        super().release(connection)


class _AsyncBriefPool(redis.asyncio.ConnectionPool):
    """:class:`_BriefPool` for coroutines."""

    async def release(self, connection: Any) -> None:  # noqa: ANN401 - redis-py's
        """Close *connection* and return it."""
        await connection.disconnect(nowait=True)
        await super().release(connection)


class _BlockingSentinelPool(redis.sentinel.SentinelConnectionPool, redis.BlockingConnectionPool):
    """Connections to the master that Sentinel names; callers wait for one that is free."""

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002 - redis-py's
        """Close all connections; not the idle ones alone, which redis-py 5 cannot."""
        if inuse_connections:
            super().disconnect()


class _AsyncBlockingSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """:class:`_BlockingSentinelPool` for coroutines."""


@dataclass(frozen=True, slots=True)
class Driver:
    """The classes of one half of redis-py: synchronous or asynchronous."""

    client: Any
    cluster: Any
    pool: Any
    blocking_pool: Any
    brief_pool: Any
    sentinel_pool: Any
    blocking_sentinel_pool: Any
    sentinel: Any
    connection: Any
    tls_connection: Any
    retry: Any
    name: str


SYNC = Driver(
    redis.Redis,
    redis.RedisCluster,
    redis.ConnectionPool,
    redis.BlockingConnectionPool,
    _BriefPool,
    redis.sentinel.SentinelConnectionPool,
    _BlockingSentinelPool,
    redis.sentinel.Sentinel,
    redis.Connection,
    redis.SSLConnection,
    redis.retry.Retry,
    "redis",
)
ASYNC = Driver(
    redis.asyncio.Redis,
    redis.asyncio.RedisCluster,
    redis.asyncio.ConnectionPool,
    redis.asyncio.BlockingConnectionPool,
    _AsyncBriefPool,
    redis.asyncio.sentinel.SentinelConnectionPool,
    _AsyncBlockingSentinelPool,
    redis.asyncio.sentinel.Sentinel,
    redis.asyncio.Connection,
    redis.asyncio.SSLConnection,
    redis.asyncio.retry.Retry,
    "redis.asyncio",
)


@dataclass(frozen=True, eq=False)
class ClusterSeeds:
    """
    What is known of a Redis Cluster before a node has replied: redis-py's own client would have to connect first.

    Attributes:
        addresses: The nodes to start with.
        settings: Of the connections to each node.
    """

    addresses: tuple[Address, ...]
    settings: Mapping[str, Any] = field(repr=False)


def is_cluster(driver: Driver, client: object) -> bool:
    """
    Return whether *client* is a Redis Cluster client.

    Raises:
        ConfigError: *client* is not a client of *driver*, is connected to replicas, or is a fakeredis.
    """
    if isinstance(client, ClusterSeeds):
        return True
    if not isinstance(client, (driver.client, driver.cluster)):
        holds_text = isinstance(client, (str, bytes, list, tuple, dict))  # which may be a URL with a password
        shown = type(client) if holds_text else client
        raise ConfigError("redis_client", shown, f"a client of {driver.name}: Redis or RedisCluster; or use url=")
    if _is_fakeredis(client):
        raise ConfigError("redis_client", client, f"a client of a real server: {NO_STRUCT}")
    if isinstance(client, driver.cluster):
        return True
    if not getattr(client.connection_pool, "is_master", True):
        raise ConfigError("redis_client", client, "a client of the master: Sentinel.master_for(...)")
    return False


def _is_fakeredis(client: Any) -> bool:  # noqa: ANN401 - a client of either half
    pool = getattr(client, "connection_pool", None)
    kinds = (*type(client).__mro__, getattr(pool, "connection_class", object))
    return any(kind.__module__.partition(".")[0] == "fakeredis" for kind in kinds)


def node_of(driver: Driver, client: Any, timeout: float) -> Node:  # noqa: ANN401 - a client of either half
    """Return a private node for *client*, not a cluster's, each wait of which ends after *timeout* seconds."""
    return _node(driver, client.connection_pool, _settings(driver, client.connection_pool, timeout), timeout)


def nodes_of_cluster(driver: Driver, client: Any, timeout: float) -> dict[Address, Node]:  # noqa: ANN401
    """
    Return a private node for every node that the cluster client *client* knows.

    They are only the nodes to start with: :func:`node_at` makes those that are discovered later.
    """
    if isinstance(client, ClusterSeeds):
        return {address: node_at(driver, client, address, timeout) for address in client.addresses}
    known = [*client.nodes_manager.startup_nodes.values(), *client.get_nodes()]
    return {(node.host, node.port): node_at(driver, client, (node.host, node.port), timeout) for node in known}


def node_at(driver: Driver, client: Any, address: Address, timeout: float) -> Node:  # noqa: ANN401
    """Return a private node for the cluster node at *address*, with the settings of the cluster client *client*."""
    if isinstance(client, ClusterSeeds):
        host, port = address
        return _node(driver, None, _override(driver, {**client.settings, "host": host, "port": port}, timeout), timeout)
    if driver is SYNC:
        pool = client.get_redis_connection(client.get_nodes()[0]).connection_pool
        settings = _settings(driver, pool, timeout)
    else:
        pool = None
        settings = _override(driver, dict(client.connection_kwargs), timeout)
    if client.read_from_replicas or getattr(client, "load_balancing_strategy", None):
        settings.pop("redis_connect_func", None)  # it sends READONLY, which permits stale reads from replicas
    settings["host"], settings["port"] = client.nodes_manager.remap_host_port(*address)
    return _node(driver, pool, settings, timeout)


def _node(
    driver: Driver,
    pool: Any,  # noqa: ANN401
    settings: dict[str, Any],
    timeout: float,
    *,
    is_sentinel: bool = False,
) -> Node:
    label = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    sentinels: list[Node] = []
    is_small = (settings.get("max_connections") or _SMALL_POOL) < _SMALL_POOL
    waiting = {"timeout": timeout} if is_small else {}
    max_idle = settings.get("health_check_interval") or MAX_IDLE
    settings = settings | {"health_check_interval": 0}  # Node replaces an idle connection; redis-py would send a PING
    if driver is ASYNC and not is_sentinel:
        settings = settings | {"socket_timeout": None}  # Node sets one deadline; redis-py's own costs a task a call
    if isinstance(pool, driver.sentinel_pool):
        label = f"{pool.service_name} (Sentinel)"
        # Each sentinel gets an equal share, so that all of them can be tried within the timeout.
        share = timeout / len(pool.sentinel_manager.sentinels)
        sentinels = [_sentinel(driver, sentinel.connection_pool, share) for sentinel in pool.sentinel_manager.sentinels]
        manager = copy.copy(pool.sentinel_manager)
        manager.sentinels = [sentinel.client for sentinel in sentinels]
        kind = driver.blocking_sentinel_pool if is_small else driver.sentinel_pool
        private = kind(pool.service_name, manager, check_connection=pool.check_connection, **waiting, **settings)
    elif is_sentinel:
        private = driver.brief_pool(**settings)
    elif is_small or isinstance(pool, driver.blocking_pool):
        private = driver.blocking_pool(timeout=timeout, **settings)
    else:
        private = driver.pool(**settings)
    client = driver.client(connection_pool=private, credential_provider=settings.get("credential_provider"))
    pools = (private, *(sentinel.client.connection_pool for sentinel in sentinels))
    return Node(client, label, pools, timeout, isinstance(private, driver.blocking_pool), max_idle)


def _sentinel(driver: Driver, pool: Any, timeout: float) -> Node:  # noqa: ANN401
    return _node(driver, pool, _settings(driver, pool, timeout), timeout, is_sentinel=True)


def _settings(driver: Driver, pool: Any, timeout: float) -> dict[str, Any]:  # noqa: ANN401
    settings = {"connection_class": pool.connection_class, "max_connections": pool.max_connections}
    return _override(driver, settings | pool.connection_kwargs, timeout)


def _override(driver: Driver, settings: dict[str, Any], timeout: float) -> dict[str, Any]:
    settings = {name: value for name, value in settings.items() if name not in _NOT_COPIED}
    settings |= {
        "socket_timeout": timeout,
        "retry": driver.retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "decode_responses": False,
    }
    if "path" not in settings:  # Unix sockets of redis-py 5 do not accept the option
        settings["socket_connect_timeout"] = timeout
    if "maint_notifications_config" in inspect.signature(driver.pool).parameters:
        # Enabled, they raise the timeouts to 10 s while a server is under maintenance.
        settings["maint_notifications_config"] = MaintNotificationsConfig(enabled=False)
    return settings
