"""Redis buckets in memory: the classes that use Redis, under a fake clock and without a server. And fakeredis."""

from __future__ import annotations

import asyncio
import threading

import pytest
from waiting import until

from bucketflow import ConfigError, CostExceedsCapacity, StoreUnavailable
from bucketflow.distributed import (
    AsyncRedisTokenBucket,
    RedisTokenBucket,
    create_async_redis_bucket_hierarchy,
    create_redis_bucket_hierarchy,
)
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script
from bucketflow.testing import FakeClock, MemoryRedis

TREE = {
    "name": "crm",
    "capacity": 10,
    "fill_rate": 10,
    "children": [{"name": "acme", "capacity": 4, "fill_rate": 1, "initial_tokens": 2}],
}


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def memory(clock):
    return MemoryRedis(clock)


def test_a_blocked_call_returns_at_once_and_the_clock_shows_its_wait(memory, clock):
    bucket = RedisTokenBucket(memory, "search", 2, 4)
    assert all(bucket.consume(block=True) for _ in range(5))
    assert clock.now() == 750_000
    assert not bucket.consume(block=True, timeout=0.2)


async def test_waiting_coroutines_are_served_in_order(memory, clock):
    bucket = AsyncRedisTokenBucket(memory, "search", 1, 2)
    served = []

    async def call(name):
        await bucket.consume(block=True)
        served.append((name, clock.now()))

    await asyncio.gather(*(call(name) for name in "abc"))
    assert served == [("a", 0), ("b", 500_000), ("c", 1_000_000)]
    await bucket.close()


def test_a_waiting_thread_goes_on_when_the_clock_is_advanced():
    clock = FakeClock(jump=False)
    bucket = RedisTokenBucket(MemoryRedis(clock), "search", 1, 1, 0)
    waiting = threading.Thread(target=bucket.consume, kwargs={"block": True})
    waiting.start()
    until(lambda: clock.sleeping)
    clock.advance(1)
    waiting.join(30)
    assert not waiting.is_alive()


def test_a_hierarchy_takes_from_every_level_or_from_none(memory, clock):
    buckets = create_redis_bucket_hierarchy(memory, TREE)
    assert buckets["acme"].consume(2)
    refused = buckets["acme"].try_consume(1)
    assert (refused.allowed, refused.binding, refused.retry_after) == (False, 1, 1)
    assert buckets["crm"].tokens == 8
    with pytest.raises(CostExceedsCapacity, match="acme"):
        buckets["acme"].consume(5)
    assert buckets["acme"].consume(block=True)
    assert clock.now() == 1_000_000


async def test_an_asynchronous_hierarchy_does_the_same(memory):
    buckets = create_async_redis_bucket_hierarchy(memory, TREE)
    assert await buckets["acme"].consume(2)
    assert (await buckets["acme"].try_consume(1)).binding == 1
    assert await buckets["crm"].get_tokens() == 8


def test_objects_with_one_key_share_their_tokens_threads_and_coroutines_alike(memory):
    first, second = RedisTokenBucket(memory, "shared", 5, 1), AsyncRedisTokenBucket(memory, "shared", 5, 1)
    assert first.consume(4)
    assert asyncio.run(second.get_tokens()) == 1
    asyncio.run(second.refund(2))
    assert first.tokens == 3
    assert RedisTokenBucket(memory, "other", 5, 1).tokens == 5
    assert RedisTokenBucket(MemoryRedis(), "shared", 5, 1).tokens == 5


def test_leased_tokens_decay_and_return(memory, clock):
    bucket, other = RedisTokenBucket(memory, "hot", 10, 1, lease=4), RedisTokenBucket(memory, "hot", 10, 1)
    assert bucket.consume()
    assert other.tokens == 5
    bucket.close()
    assert other.tokens == 9
    assert bucket.consume()
    clock.advance(20)
    assert other.tokens == 10


def test_a_bucket_is_forgotten_once_it_is_full(memory, clock):
    assert RedisTokenBucket(memory, "search", 2, 1).consume(2)
    clock.advance(1.9)
    assert RedisTokenBucket(memory, "search", 2, 1, 0).tokens == pytest.approx(1.9)
    clock.advance(0.3)
    assert RedisTokenBucket(memory, "search", 2, 1, 0).tokens == 0  # a new bucket, with its initial tokens
    assert list(memory._buckets._stored) == [b"bucketflow:{search}"]
    clock.advance(10)
    assert RedisTokenBucket(memory, "search", 2, 1).tokens == 2
    assert not memory._buckets._stored


def test_a_flush_fills_every_bucket(memory):
    bucket = RedisTokenBucket(memory, "search", 3, 1)
    assert bucket.consume(3)
    memory.flushall()
    assert bucket.consume(3)


def test_a_bucket_with_a_clock_of_its_own_waits_by_that_clock(memory, clock):
    own = FakeClock(start=100)
    bucket = RedisTokenBucket(memory, "search", 1, 1, clock=own)
    assert bucket.consume()
    assert not bucket.consume(block=True, timeout=0.5)
    assert (own.now(), clock.now()) == (100_000_000, 0)


@pytest.mark.parametrize("kind", [RedisTokenBucket, AsyncRedisTokenBucket])
def test_arguments_are_checked_as_with_redis(memory, kind):
    with pytest.raises(ConfigError, match="timeout"):
        kind(memory, "a", 1, 1, timeout=0)
    with pytest.raises(ConfigError, match="key"):
        kind(memory, "{", 1, 1)
    with pytest.raises(ConfigError, match="redis_client"):
        kind(memory, "a", 1, 1, parent=kind(MemoryRedis(), "b", 1, 1))


# fakeredis, whose Lua has no struct


def fake_clients():
    fakeredis = pytest.importorskip("fakeredis")
    return [(RedisTokenBucket, fakeredis.FakeRedis), (AsyncRedisTokenBucket, fakeredis.FakeAsyncRedis)]


@pytest.mark.parametrize("number", [0, 1], ids=["threads", "asyncio"])
def test_fakeredis_is_refused_at_once_with_what_to_use_instead(number):
    kind, client = fake_clients()[number]
    with pytest.raises(ConfigError, match=r"fakeredis .* bucketflow\.testing\.MemoryRedis"):
        kind(client(), "a", 1, 1)


def test_a_throttle_names_its_own_stand_in():
    (_, client), _ = fake_clients()
    with pytest.raises(ConfigError, match=r"bucketflow_celery\.testing\.MemoryStore"):
        ScriptRunner(client())


def test_a_server_whose_scripts_have_no_struct_is_named(redis_client):
    bucket = RedisTokenBucket(redis_client, "search", 1, 1)
    bucket._path.script = Script.of("consume", """error("attempt to index global 'struct' (a nil value)")""")
    with pytest.raises(StoreUnavailable, match=r"fakeredis .* bucketflow\.testing\.MemoryRedis"):
        bucket.consume()
