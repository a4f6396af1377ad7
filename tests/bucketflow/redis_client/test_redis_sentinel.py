"""Buckets behind Sentinel: failover, hung sentinels, clients of replicas."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis.asyncio.sentinel
import redis.sentinel
from proxy import Proxy
from servers import RedisSentinel, wait_replicated, wait_until

from bucketflow import ConfigError, StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.connection import MAX_IDLE
from bucketflow.redis_client.runner import AsyncScriptRunner, ScriptRunner
from bucketflow.redis_client.scripts import Script

SLOW = 0.001  # tokens per second: no refill during a test
ONE = Script.of("one", "redis.call('SET', KEYS[1], 1) return 1")


@pytest.fixture
def sentinel(tmp_path):
    with RedisSentinel.start(tmp_path / "sentinel") as sentinel:
        yield sentinel


def in_time(call, limit=2.0):
    began = time.monotonic()
    try:
        return call()
    except StoreUnavailable:
        return False
    finally:
        assert time.monotonic() - began < limit


def test_threads_and_coroutines_recover_from_a_failover(sentinel):
    loop = asyncio.new_event_loop()
    client = redis.sentinel.Sentinel(sentinel.addresses()).master_for(sentinel.SERVICE)
    bucket = RedisTokenBucket(client, "shop", 50, SLOW, timeout=0.5)
    async_client = redis.asyncio.sentinel.Sentinel(sentinel.addresses()).master_for(sentinel.SERVICE)
    async_bucket = AsyncRedisTokenBucket(async_client, "shop", 50, SLOW, timeout=0.5)
    assert bucket.consume()
    assert loop.run_until_complete(async_bucket.consume())
    wait_replicated(sentinel.master, sentinel.replica)
    sentinel.master.kill()
    with pytest.raises(StoreUnavailable, match="mymaster"):
        bucket.consume()
    wait_until(lambda: in_time(bucket.consume), timeout=30, pause=0.05)
    wait_until(lambda: in_time(lambda: loop.run_until_complete(async_bucket.consume())), timeout=30, pause=0.05)
    assert bucket.tokens == pytest.approx(46, abs=0.01)  # the replica has the tokens spent before
    loop.run_until_complete(async_bucket.close())
    loop.close()


@pytest.mark.timing
def test_hung_sentinels_fail_a_call_in_time(sentinel):
    client = redis.sentinel.Sentinel(sentinel.addresses()).master_for(sentinel.SERVICE)
    bucket = RedisTokenBucket(client, "shop", 50, SLOW, timeout=0.3)
    watcher = sentinel.members[-1]
    watcher.pause()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        bucket.consume()
    assert time.monotonic() - began < 0.8
    watcher.resume()
    assert bucket.consume()


def test_connections_to_master_and_sentinel_that_were_dropped_while_idle_fail_no_call(sentinel):
    with Proxy(sentinel.ports[0]) as proxy:
        client = redis.sentinel.Sentinel([("127.0.0.1", proxy.port)]).master_for(sentinel.SERVICE)
        bucket = RedisTokenBucket(client, "shop", 50, SLOW, timeout=0.5)
        assert bucket.consume()
        proxy.drop()
        topology = bucket._runner._topology
        topology.sole_node = dataclasses.replace(topology.sole_node, clock=lambda: time.monotonic() + MAX_IDLE)

        assert bucket.consume()
        assert proxy.accepted == 2


def test_threads_and_coroutines_share_one_connection_to_the_master(sentinel):
    client = redis.sentinel.Sentinel(sentinel.addresses(), max_connections=1).master_for(sentinel.SERVICE)
    runner = ScriptRunner(client)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: runner.run(ONE, [b"key"], []), range(20))) == [1] * 20

    async def run():
        manager = redis.asyncio.sentinel.Sentinel(sentinel.addresses(), max_connections=1)
        runner = AsyncScriptRunner(manager.master_for(sentinel.SERVICE))
        replies = await asyncio.gather(*[runner.run(ONE, [b"key"], []) for _ in range(20)])
        await runner.close()
        return replies

    assert asyncio.run(run()) == [1] * 20
    wait_replicated(sentinel.master, sentinel.replica)
    sentinel.master.kill()
    wait_until(lambda: in_time(lambda: runner.run(ONE, [b"key"], [])), timeout=30, pause=0.05)


def test_a_client_of_the_replicas_is_rejected(sentinel):
    manager = redis.sentinel.Sentinel(sentinel.addresses())
    with pytest.raises(ConfigError, match="master_for"):
        RedisTokenBucket(manager.slave_for(sentinel.SERVICE), "shop", 5, 1)
