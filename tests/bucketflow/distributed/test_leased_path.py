"""Token leases: fewer calls to Redis, the same promises."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import redis
import redis.asyncio
from waiting import until

from bucketflow import ConfigError, CostExceedsCapacity, Limit
from bucketflow.distributed import (
    AsyncRedisTokenBucket,
    RedisTokenBucket,
    create_async_redis_bucket_hierarchy,
    create_redis_bucket_hierarchy,
)
from bucketflow.testing import FakeClock, worst_excess

SLOW = 0.001  # tokens per second: no refill during a test


def calls(client):
    return client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


def about(tokens):
    return pytest.approx(tokens, abs=0.01)


def test_a_lease_is_spent_without_calls_to_redis(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 1000, SLOW, lease=100)
    assert bucket.consume()  # loads the script
    before = calls(redis_client)
    assert all(bucket.consume() for _ in range(100))
    assert calls(redis_client) == before
    assert bucket.consume()
    assert calls(redis_client) == before + 1


def test_leased_tokens_are_taken_for_other_objects(redis_client):
    holder = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60)
    other = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    assert holder.consume()
    assert other.tokens == about(39)
    refusal = other.try_consume(40)
    assert not refusal.allowed
    assert refusal.retry_after == pytest.approx(1000, abs=1)


@pytest.mark.parametrize("spent", [1, 7, 61])
def test_close_returns_the_unspent_tokens(redis_client, spent):
    holder = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60)
    other = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    assert all(holder.consume() for _ in range(spent))
    holder.close()
    assert other.tokens == about(100 - spent)
    assert redis_client.strlen("bucketflow:{shop}") == 16  # without the two numbers of outstanding leases


@pytest.mark.parametrize(("order", "left"), [((1, 0), 96), ((0, 1), 96 - 20)])
def test_tokens_returned_under_a_later_lease_come_back_by_refill_only(redis_client, order, left):
    root = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    holders = [RedisTokenBucket(redis_client, f"tenant{n}", 50, SLOW, parent=root, lease=20) for n in range(2)]
    for holder in holders:
        assert holder.consume(2)
    for number in order:
        holders[number].close()
    assert root.tokens == about(left)
    assert [holder.tokens for holder in holders] == [about(48)] * 2


def test_a_look_settles_the_lease_first_and_so_sees_the_true_level(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60)
    bucket.consume(5)
    assert bucket.tokens == about(95)
    assert bucket.consume()
    assert bucket.wait_time(94) == 0
    assert bucket.consume(94)  # more than the lease: one call settles it and takes the whole cost
    assert not bucket.consume()


def test_a_refused_call_leases_nothing(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 10, SLOW, lease=10)
    assert bucket.consume(6)
    assert not bucket.consume(5)
    assert RedisTokenBucket(redis_client, "shop", 10, SLOW).tokens == about(4)


def test_a_decision_from_a_lease_has_the_tokens_left(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 100, SLOW)
    bucket = RedisTokenBucket(redis_client, "acme", 50, SLOW, parent=root, lease=20)
    bucket.consume()
    decision = bucket.try_consume(4)
    assert (decision.allowed, decision.retry_after, decision.binding) == (True, 0, None)
    assert decision.tokens == (about(95), about(45))


def test_refunded_tokens_of_a_lease_return_to_the_bucket(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=20)
    bucket.consume(6)
    bucket.refund(6)
    assert bucket.tokens == about(100)


def test_a_leasing_bucket_starts_with_its_initial_tokens(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 100, SLOW, initial_tokens=30, lease=20)
    assert bucket.consume(5)
    bucket.close()
    assert bucket.tokens == about(25)
    assert not bucket.consume(26)


def test_a_lease_is_limited_to_the_whole_tokens_in_the_bucket(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 7.5, SLOW, lease=100)
    assert bucket.consume()
    assert RedisTokenBucket(redis_client, "shop", 7.5, SLOW).tokens == about(0.5)
    assert all(bucket.consume() for _ in range(6))
    assert not bucket.consume()


def test_a_lease_decays_as_its_bucket_refills(redis_client):
    clock = FakeClock()
    bucket = RedisTokenBucket(redis_client, "shop", 100, 10, lease=50, clock=clock)
    assert bucket.consume()
    before = calls(redis_client)
    clock.advance(2)  # for the holder only: in Redis hardly any time has passed
    assert all(bucket.consume() for _ in range(31))  # with 1 token missing, the lease decays from 0.1 s on
    assert calls(redis_client) == before
    assert bucket.consume()
    assert calls(redis_client) == before + 1


@pytest.mark.parametrize("wrong", [0, -1, "100", True, float("nan")])
def test_an_invalid_lease_is_rejected(wrong):
    with pytest.raises(ConfigError) as error:
        RedisTokenBucket(redis.Redis(port=1), "shop", 5, 1, lease=wrong)
    assert error.value.entry == "lease"
    with pytest.raises(ConfigError):
        AsyncRedisTokenBucket(redis.asyncio.Redis(port=1), "shop", 5, 1, lease=wrong)


def test_a_cost_above_the_capacity_raises_with_a_lease_too(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 5, 1, lease=3)
    with pytest.raises(CostExceedsCapacity):
        bucket.consume(6)


def test_the_buckets_of_a_hierarchy_lease(redis_client):
    config = {"name": "shop", "capacity": 100, "fill_rate": SLOW}
    config["children"] = [{"name": "acme", "capacity": 50, "fill_rate": SLOW}]
    buckets = create_redis_bucket_hierarchy(redis_client, config, lease=20)
    assert buckets["acme"].consume()
    before = calls(redis_client)
    assert all(buckets["acme"].consume() for _ in range(20))
    assert calls(redis_client) == before
    create_async_redis_bucket_hierarchy(redis.asyncio.Redis(port=1), config, lease=20)


# Several processes ---------------------------------------------------------------------------------------------------


def test_a_forked_child_does_not_spend_its_parents_lease(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 100, SLOW, lease=60)
    bucket.consume()
    child = os.fork()
    if child == 0:
        grants = [bucket.consume() for _ in range(50)]
        os._exit(sum(grants))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 39
    assert sum(bucket.consume() for _ in range(100)) == 60


HOLDER = """
import json, sys, time
import redis
from bucketflow.distributed import RedisTokenBucket

port, seconds, lease = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
client = redis.Redis(port=port)
bucket = RedisTokenBucket(client, "shop", 20, 400, lease=lease)
client.incr("ready")
while int(client.get("ready")) % 3:
    time.sleep(0.001)
starts, stop = [], time.monotonic() + seconds
while time.monotonic() < stop:
    if bucket.consume(block=True, timeout=0.5):
        starts.append(time.monotonic())
print(json.dumps(starts))
"""


@pytest.mark.timing
@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("lease", [3, 20])
def test_processes_that_lease_use_the_limit_and_never_exceed_it(redis_server, lease):
    limit = Limit(20, 400)
    arguments = [sys.executable, "-c", HOLDER, str(redis_server.port), "1.5", str(lease)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE) for _ in range(3)]
    starts = sorted(at for process in processes for at in json.loads(process.communicate(timeout=60)[0]))
    # Each start is recorded with some delay after its grant; in the worst case one has it and another has not.
    delay = 0.02
    assert worst_excess([(at, 1) for at in starts], limit) <= delay * limit.fill_rate
    assert (len(starts) - limit.capacity) / limit.fill_rate / (starts[-1] - starts[0]) >= 0.99 - delay


def test_the_lease_of_a_killed_process_returns_to_the_bucket_by_refill(redis_server, redis_client):
    code = """
import sys, time, redis
from bucketflow.distributed import RedisTokenBucket
client = redis.Redis(port=int(sys.argv[1]))
bucket = RedisTokenBucket(client, "shop", 100, 200, lease=90)
bucket.consume()
client.set("holds", 1)
time.sleep(60)
"""
    bucket = RedisTokenBucket(redis_client, "shop", 100, 200)
    with subprocess.Popen([sys.executable, "-c", code, str(redis_server.port)]) as process:
        until(lambda: redis_client.get("holds"))
        process.send_signal(signal.SIGKILL)
    assert bucket.consume(100, block=True, timeout=5)


# Coroutines ----------------------------------------------------------------------------------------------------------


async def test_coroutines_spend_a_lease_without_calls_and_close_returns_the_rest(async_client, redis_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 100, SLOW, lease=60)
    assert await bucket.consume()
    before = calls(redis_client)
    assert all(await asyncio.gather(*(bucket.consume() for _ in range(60))))
    assert (await bucket.try_consume()).tokens == (about(38),)
    assert calls(redis_client) == before + 1
    await bucket.close()
    assert RedisTokenBucket(redis_client, "shop", 100, SLOW).tokens == about(38)


async def test_requests_pending_while_a_lease_arrives_are_granted_from_it(async_client, redis_client):
    bucket = AsyncRedisTokenBucket(async_client, "shop", 100, SLOW, lease=60)
    await bucket.get_tokens()
    before = calls(redis_client)
    assert all(await asyncio.gather(*(bucket.consume() for _ in range(50))))
    assert calls(redis_client) == before + 1
    await bucket.close()


def test_event_loops_of_several_threads_lease_from_one_object(redis_server, redis_client):
    client = redis.asyncio.Redis(port=redis_server.port)
    bucket = AsyncRedisTokenBucket(client, "shop", 500, SLOW, lease=7)

    async def work():
        granted = sum([await bucket.consume() for _ in range(200)])
        await bucket.close()
        return granted

    granted = []
    threads = [threading.Thread(target=lambda: granted.append(asyncio.run(work()))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = RedisTokenBucket(redis_client, "shop", 500, SLOW).tokens
    assert sum(granted) + left == about(500)
    assert sum(granted) >= 500 - 4 * 7
