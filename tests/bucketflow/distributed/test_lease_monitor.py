"""Return of unused leases: without a call, without a thread left behind."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest
from waiting import until

from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket, lease_monitor

SLOW = 0.001  # tokens per second: no refill during a test


def about(tokens):
    return pytest.approx(tokens, abs=0.01)


@pytest.fixture
def short_interval(monkeypatch):
    monkeypatch.setattr(lease_monitor, "CHECK_INTERVAL", 0.05)


@pytest.mark.usefixtures("short_interval")
def test_an_unused_lease_is_returned_without_a_call(redis_client):
    holder = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60, timeout=30)
    other = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    for spent in (1, 2):  # the monitor starts again for the second lease
        assert holder.consume()
        until(lambda spent=spent: other.tokens == about(100 - spent))


@pytest.mark.usefixtures("short_interval")
def test_the_monitor_thread_ends_with_the_lease(redis_client):
    others = set(threading.enumerate())
    closed = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60, timeout=30)
    closed.consume()
    (monitor,) = set(threading.enumerate()) - others
    closed.close()
    monitor.join(30)
    assert not monitor.is_alive()
    forgotten = RedisTokenBucket(redis_client, "forgotten", 100, SLOW, lease=60, timeout=30)
    forgotten.consume()
    (monitor,) = set(threading.enumerate()) - others
    del forgotten
    gc.collect()
    monitor.join(30)
    assert not monitor.is_alive()
    assert RedisTokenBucket(redis_client, "forgotten", 100, SLOW).tokens == about(99)


@pytest.mark.usefixtures("short_interval")
def test_one_thread_and_one_connection_return_the_leases_of_all_buckets_of_a_client(redis_client):
    others, connections = set(threading.enumerate()), len(redis_client.client_list())
    holders = [RedisTokenBucket(redis_client, f"tenant {n}", 10, SLOW, lease=5, timeout=30) for n in range(200)]
    most = 0
    for holder in holders:
        assert holder.consume()
        most = max(most, len(redis_client.client_list()) - connections)
        assert len(set(threading.enumerate()) - others) <= 1
    until(lambda: all(holder._path.left == 0 for holder in holders))
    assert most <= 2
    until(lambda: set(threading.enumerate()) <= others)
    assert [RedisTokenBucket(redis_client, f"tenant {n}", 10, SLOW).tokens for n in range(200)] == [about(9)] * 200


@pytest.mark.usefixtures("short_interval")
async def test_coroutines_return_the_leases_of_all_buckets_over_few_connections(async_client, redis_client):
    connections = len(redis_client.client_list())
    holders = [AsyncRedisTokenBucket(async_client, f"tenant {n}", 10, SLOW, lease=5, timeout=30) for n in range(200)]
    for holder in holders:
        assert await holder.consume()
    for _ in range(500):
        await asyncio.sleep(0.01)
        assert len(redis_client.client_list()) - connections <= 2
        if not any(holder._path.left for holder in holders):
            break
    assert [RedisTokenBucket(redis_client, f"tenant {n}", 10, SLOW).tokens for n in range(200)] == [about(9)] * 200
    await holders[0].close()


def test_a_lease_works_without_a_monitor_thread(redis_client, monkeypatch):
    bucket = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60, timeout=30)

    def cannot_start(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", cannot_start)
        assert bucket.consume()
    assert bucket.consume()
    bucket.close()
    assert bucket.tokens == about(98)


@pytest.mark.usefixtures("short_interval")
async def test_a_lease_unused_by_coroutines_is_returned_without_a_call(async_client, redis_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 100, SLOW, lease=60, timeout=30)
    other = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    assert await bucket.consume()
    assert other.tokens == about(39)
    for _ in range(500):
        await asyncio.sleep(0.01)
        if other.tokens == about(99):
            break
    assert other.tokens == about(99)
    await bucket.close()


class SlowRedis:
    """Replies to no call until it is resumed."""

    def __init__(self):
        self.resumed = asyncio.Event()
        self.running = self.most = self.calls = 0

    async def run_all(self, calls):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        await self.resumed.wait()
        self.running -= 1
        return [b""] * len(calls)


class Lease:
    """A path that holds tokens until they are returned."""

    left = 5.0

    def settle(self):
        call, self.left = (self if self.left else None), 0.0
        return call


async def test_coroutines_return_one_lease_at_a_time_while_redis_is_slow(monkeypatch):
    monkeypatch.setattr(lease_monitor, "CHECK_INTERVAL", 0.001)
    redis, leases = SlowRedis(), [Lease() for _ in range(10)]
    monitor = lease_monitor.AsyncLeaseMonitor(redis)
    for lease in leases:
        monitor.watch(lease)
        await asyncio.sleep(0.005)
    assert (redis.calls, redis.most) == (1, 1)
    redis.resumed.set()
    for _ in range(5000):
        await asyncio.sleep(0.001)
        if redis.calls == len(leases):
            break
    assert (redis.calls, redis.most) == (10, 1)
