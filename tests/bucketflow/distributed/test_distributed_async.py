"""Token buckets in Redis for coroutines: the same promises as for threads."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from bucketflow import CostExceedsCapacity
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket, create_async_redis_bucket_hierarchy

SLOW = 0.001  # tokens per second: no refill during a test


async def test_coroutines_and_threads_share_a_bucket(async_client, redis_client):
    root = AsyncRedisTokenBucket(async_client, "shop", 10, SLOW)
    leaf = AsyncRedisTokenBucket(async_client, "acme", 4, SLOW, parent=root)
    assert await leaf.consume(3)
    assert not await leaf.consume(2)
    assert (await leaf.try_consume(2)).binding == 1
    assert RedisTokenBucket(redis_client, "shop", 10, SLOW).tokens == pytest.approx(7, abs=0.01)
    await leaf.refund(3)
    assert await leaf.get_tokens() == 4
    assert await leaf.wait_time(4) == 0


async def test_waiting_coroutines_are_granted_in_order(async_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 1, 50, initial_tokens=0)
    granted = []

    async def wait(number):
        assert await bucket.consume(block=True, timeout=10)
        granted.append(number)

    tasks = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0.005)
    assert not await bucket.consume()
    refusal = await bucket.try_consume()
    await asyncio.gather(*tasks)
    assert granted == [0, 1, 2, 3, 4]
    assert not refusal.allowed
    assert not await bucket.consume(block=True, timeout=0)


async def test_a_coroutine_cancelled_while_waiting_spends_nothing(async_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 1, 10, initial_tokens=0)
    await bucket.wait_time()
    waiters = [asyncio.create_task(bucket.consume(block=True)) for _ in range(2)]
    await asyncio.sleep(0.03)
    waiters[0].cancel()
    assert await asyncio.wait_for(waiters[1], 0.5)
    with pytest.raises(asyncio.CancelledError):
        await waiters[0]


async def test_the_reply_of_a_call_cancelled_in_flight_does_not_reach_the_next_call(async_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 1000, SLOW)
    for number in range(20):
        call = asyncio.create_task(bucket.try_consume())
        for _ in range(number % 7):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await bucket.wait_time(0) == 0
        assert 1000 - number - 1.01 <= await bucket.get_tokens() <= 1000


async def test_an_async_hierarchy_enforces_every_level(async_client):
    config = {"name": "all", "capacity": 3, "fill_rate": SLOW}
    config["children"] = [{"name": "acme", "capacity": 9, "fill_rate": 1}]
    tree = create_async_redis_bucket_hierarchy(async_client, config)
    with pytest.raises(CostExceedsCapacity, match=r"^all"):
        await tree["acme"].consume(4)
    assert await tree["acme"].consume(3)


@pytest.mark.usefixtures("redis_client")
def test_a_bucket_works_in_one_event_loop_after_another(redis_server):
    bucket = AsyncRedisTokenBucket(redis.asyncio.Redis(port=redis_server.port), "shop", 5, SLOW)

    async def use():
        granted = await bucket.consume()
        await bucket.close()
        return granted

    assert [asyncio.run(use()) for _ in range(3)] == [True] * 3


def test_waiters_of_a_closed_event_loop_do_not_block_others(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    client = redis.asyncio.Redis(port=redis_server.port)
    bucket = AsyncRedisTokenBucket(client, "shop", 1, 50, initial_tokens=0)
    loop = asyncio.new_event_loop()
    waiters = [loop.create_task(bucket.consume(block=True)) for _ in range(2)]
    loop.run_until_complete(asyncio.sleep(0.005))
    loop.close()
    assert asyncio.run(bucket.consume(block=True, timeout=5))
    del waiters


def test_state_of_closed_event_loops_is_dropped(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    bucket = AsyncRedisTokenBucket(redis.asyncio.Redis(port=redis_server.port), "shop", 100, SLOW, lease=10)
    for _ in range(5):
        assert asyncio.run(bucket.consume())
        bucket._path.settle()  # so that the next loop calls Redis, too
    assert len(bucket._runner._loops) == 1
    assert len(bucket._monitor._timers) <= 1
