"""Connections that may not be used again, idle for long or to a replica; and pools of too few of them."""

from __future__ import annotations

import asyncio
import dataclasses
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
import redis.asyncio
import redis.sentinel
from proxy import Proxy
from redis.exceptions import (
    BusyLoadingError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)
from servers import RedisServer, wait_until

from bucketflow import StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.connection import MAX_IDLE
from bucketflow.redis_client.private_clients import SYNC, node_of
from bucketflow.redis_client.replies import is_not_master, is_unexecuted, spoils_connection
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner
from bucketflow.redis_client.scripts import Script
from bucketflow.redis_client.topology import ScriptCall

SLOW = 0.001  # tokens per second: no refill during a test
PING = ScriptCall.of(Script.of("ping", "return 1"), [b"key"], []).as_eval()


class Threads:
    def __init__(self, port, **options):
        client = redis.Redis(port=port, **options)
        self.bucket = RedisTokenBucket(client, "shop", 1000, SLOW, timeout=0.5)

    def consume(self):
        return self.bucket.consume()

    def topology(self):
        return self.bucket._runner._topology

    def close(self):
        self.bucket.close()


class Coroutines:
    def __init__(self, port, **options):
        self.loop = asyncio.new_event_loop()
        client = redis.asyncio.Redis(port=port, **options)
        self.bucket = AsyncRedisTokenBucket(client, "shop", 1000, SLOW, timeout=0.5)

    def consume(self):
        return self.loop.run_until_complete(self.bucket.consume())

    def topology(self):
        return self.bucket._runner._loops[self.loop].topology

    def close(self):
        self.loop.run_until_complete(self.bucket.close())
        self.loop.close()


@pytest.fixture
def proxy(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    with Proxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture(params=[Threads, Coroutines])
def of_kind(request):
    made = []

    def make(port, **options):
        made.append(request.param(port, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def advance(shop, seconds):
    """Let the clock of the connections go on by *seconds*."""
    topology = shop.topology()
    node = dataclasses.replace(topology.sole_node, clock=lambda: monotonic() + seconds)
    topology.sole_node = node
    topology.nodes = dict.fromkeys(topology.nodes, node)


@pytest.mark.parametrize("options", [{}, {"health_check_interval": 2}], ids=str)
def test_a_connection_that_was_dropped_while_idle_fails_no_call(of_kind, proxy, options):
    shop = of_kind(proxy.port, **options)
    assert shop.consume()
    proxy.drop()

    advance(shop, options.get("health_check_interval", MAX_IDLE))

    assert shop.consume()
    assert proxy.accepted == 2


def test_a_connection_that_is_used_again_before_long_is_not_replaced(of_kind, proxy):
    shop = of_kind(proxy.port)
    assert shop.consume()

    advance(shop, MAX_IDLE - 5)

    assert shop.consume()
    assert proxy.accepted == 1


@pytest.mark.parametrize("pool", [redis.ConnectionPool, redis.BlockingConnectionPool])
def test_every_connection_has_its_own_time_of_idleness(proxy, pool):
    now = [0.0]
    client = redis.Redis(connection_pool=pool(port=proxy.port))
    node = dataclasses.replace(node_of(SYNC, client, 0.5), clock=lambda: now[0])
    for connection in [node.connect() for _ in range(3)]:
        node.release(connection)
    assert proxy.accepted == 3
    for _ in range(10):  # one connection is in use, two are idle for longer and longer
        now[0] += MAX_IDLE / 5
        node.exchange([PING])
    assert proxy.accepted == 3
    proxy.drop()
    now[0] += MAX_IDLE

    connections = [node.connect() for _ in range(3)]

    assert proxy.accepted == 6
    for connection in connections:
        node.release(connection)
    node.close()


def test_no_call_of_a_busy_connection_asks_for_its_health(redis_server, redis_client):
    bucket = RedisTokenBucket(redis_server.client(health_check_interval=1), "shop", 1000, SLOW)
    bucket.consume()
    before = redis_client.info("commandstats")
    for _ in range(50):
        bucket.consume()
    after = redis_client.info("commandstats")
    assert after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"] == 50
    assert after.get("cmdstat_ping") == before.get("cmdstat_ping")


@pytest.mark.parametrize(
    ("reply", "not_master", "unexecuted", "spoils"),
    [
        (ReadOnlyError("You can't write against a read only replica."), True, True, True),
        (MasterDownError("Link with MASTER is down"), True, True, True),
        (ResponseError("MASTERDOWN Link with MASTER is down"), True, True, True),  # redis-py 5
        (ResponseError("the READONLY mode of something else"), False, False, True),
        (BusyLoadingError("Redis is loading the dataset in memory"), True, True, False),
        (
            ResponseError("Error running script (call to f_1): -READONLY You can't write"),
            True,
            True,
            True,
        ),
        (NoScriptError("No matching script"), False, True, False),
        (ResponseError("WRONGTYPE Operation against a key"), False, False, True),
        (OutOfMemoryError("command not allowed"), False, False, False),
        (b"-READONLY ", False, False, False),
        (1, False, False, False),
    ],
    ids=str,
)
def test_a_reply_decides_about_a_repetition_and_about_the_connection(reply, not_master, unexecuted, spoils):
    assert is_not_master(reply) is not_master
    assert is_unexecuted(reply) is unexecuted
    assert spoils_connection(reply) is spoils  # redis-py raises BusyLoadingError, and Node then closes the connection


@pytest.fixture
def pair(tmp_path):
    """Yield a master, its replica, and a proxy in front of the master."""
    with RedisServer.start(tmp_path / "a") as master, RedisServer.start(tmp_path / "b") as replica:
        with replica.client() as client:
            client.replicaof("127.0.0.1", master.port)
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        with Proxy(master.port) as proxy:
            yield master, replica, proxy


def fail_over(master, replica, proxy):
    """Make the *replica* the master; new connections lead to it, and those that are established to the old master."""
    with master.client() as old, replica.client() as new:
        new.replicaof("NO", "ONE")
        old.replicaof("127.0.0.1", replica.port)
        wait_until(lambda: old.info("replication")["master_link_status"] == "up")
    proxy.target = replica.port


def test_after_a_failover_behind_one_address_the_next_call_reaches_the_new_master(of_kind, pair):
    master, replica, proxy = pair
    shop = of_kind(proxy.port)
    assert shop.consume()

    fail_over(master, replica, proxy)

    assert shop.consume()
    assert shop.consume()
    with replica.client() as client:
        assert client.info("commandstats")["cmdstat_eval"]["calls"] >= 1


def test_a_replica_that_lost_its_master_is_left_for_a_new_connection(of_kind, pair):
    master, replica, proxy = pair
    with replica.client() as client:
        client.config_set("replica-serve-stale-data", "no")
    shop = of_kind(proxy.port)
    assert shop.consume()
    with master.client() as client:
        client.config_set("replica-serve-stale-data", "no")
        client.replicaof("127.0.0.1", 1)
    with replica.client() as client:
        client.replicaof("NO", "ONE")
    proxy.target = replica.port

    assert shop.consume()


SLOW_SCRIPT = Script.of("slow", "for _ = 1, 20000 do redis.call('GET', KEYS[1]) end return 1")


@pytest.mark.parametrize("limit", [1, 2])
def test_threads_share_the_connections_of_a_small_pool(redis_server, redis_client, limit):
    before = len(redis_client.client_list())
    runner = ScriptRunner(redis_server.client(max_connections=limit), 10)

    with ThreadPoolExecutor(8) as pool:
        replies = [pool.submit(runner.run, SLOW_SCRIPT, [b"key"], []) for _ in range(16)]
        most = len(redis_client.client_list())

    assert [reply.result() for reply in replies] == [1] * 16
    assert most <= before + limit
    assert runner.max_connections == limit
    runner.close()


@pytest.mark.parametrize("limit", [1, 2])
def test_coroutines_share_the_connections_of_a_small_pool(redis_server, redis_client, limit):
    before = len(redis_client.client_list())

    async def run():
        client = redis.asyncio.Redis(port=redis_server.port, max_connections=limit)
        runner = AsyncScriptRunner(client, 10)
        calls = [asyncio.ensure_future(runner.run(SLOW_SCRIPT, [b"key"], [])) for _ in range(16)]
        await asyncio.sleep(0.01)
        most = len(redis_client.client_list())
        replies = await asyncio.gather(*calls)
        await runner.close()
        return most, replies

    most, replies = asyncio.run(run())
    assert replies == [1] * 16
    assert most <= before + limit


def test_a_small_pool_whose_connections_are_all_in_use_fails_a_call_in_time(redis_server):
    runner = ScriptRunner(redis_server.client(max_connections=1), 0.2)
    node = runner._topology.sole_node
    taken = node.connect()
    with pytest.raises(StoreUnavailable, match="No connection available"):
        runner.run(SLOW_SCRIPT, [b"key"], [])
    node.release(taken)
    assert runner.run(SLOW_SCRIPT, [b"key"], []) == 1


def test_a_subscription_leaves_the_last_connection_to_the_calls(redis_server, redis_client):
    for limit, heard in ((1, None), (2, b"hello")):
        runner = ScriptRunner(redis_server.client(max_connections=limit), 10)
        with runner.subscribe("channel") as subscription:
            assert runner.run(SLOW_SCRIPT, [b"key"], []) == 1
            redis_client.publish("channel", "hello")
            assert next((word for word in (subscription.get(0.1) for _ in range(5)) if word), None) == heard
        runner.close()
