"""Buckets under freezegun and time-machine: they go by the real clock, during the freeze and after it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from datetime import datetime, timezone
from functools import partial

import pytest
import redis.asyncio

from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, TokenBucket, async_rate_limit, rate_limit
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.testing import FakeClock

#: One token at the start, then one every 20 ms.
LIMIT = (1, 50)
PATIENCE = 30
PAST, FUTURE = "2020-02-29", "2099-12-31"


def freezegun(date):
    return pytest.importorskip("freezegun").freeze_time(date)


def time_machine(date):
    travel = pytest.importorskip("time_machine").travel
    return travel(datetime.fromisoformat(date).replace(tzinfo=timezone.utc), tick=False)


each_freeze = pytest.mark.parametrize(
    "frozen", [partial(freeze, date) for freeze in (freezegun, time_machine) for date in (PAST, FUTURE)]
)


def blocking(bucket):
    return lambda: bucket.consume(block=True)


def running(coroutine_function):
    return lambda: asyncio.run(coroutine_function())


def awaiting(bucket):
    return running(partial(bucket.consume, block=True))


def awaiting_redis(client):
    async def consume():
        async with redis.asyncio.Redis(port=client.get_connection_kwargs()["port"]) as own:
            bucket = AsyncRedisTokenBucket(own, "async", *LIMIT)
            taken = await bucket.consume(block=True)
            await bucket.close()
            return taken

    return running(consume)


MADE = {
    "TokenBucket": lambda _: blocking(TokenBucket(*LIMIT)),
    "AsyncTokenBucket": lambda _: awaiting(AsyncTokenBucket(*LIMIT)),
    "HierarchicalTokenBucket": lambda _: blocking(HierarchicalTokenBucket(*LIMIT)),
    "rate_limit": lambda _: rate_limit(50, 1)(lambda: True),
    "async_rate_limit": lambda _: running(async_rate_limit(50, 1)(lambda: True)),
    "RedisTokenBucket": lambda client: blocking(RedisTokenBucket(client, "threads", *LIMIT)),
    "AsyncRedisTokenBucket": awaiting_redis,
}
each_bucket = pytest.mark.parametrize("made", MADE.values(), ids=MADE)


def finished(call):
    """Return the µs that three runs of *call* take, in a thread that a hang cannot keep."""
    results = []

    def run():
        before = SYSTEM_CLOCK.now()
        results.extend(call() for _ in range(3))
        results.append(SYSTEM_CLOCK.now() - before)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert results[:3] == [True] * 3
    return results[3]


@each_freeze
@each_bucket
def test_a_bucket_works_during_the_freeze_and_after_it(frozen, made, redis_client):
    with frozen():
        take = made(redis_client)
        during = finished(take)
    after = finished(take)
    assert during >= 40_000 - 2_000  # the first token is there at once; Redis rounds to µs of its own clock
    assert after >= 40_000 - 2_000


@each_freeze
@each_bucket
def test_a_bucket_that_is_older_than_the_freeze_works_in_it_and_after_it(frozen, made, redis_client):
    take = made(redis_client)
    assert take()
    with frozen():
        assert finished(take) >= 40_000 - 2_000
    assert finished(take) >= 40_000 - 2_000


@each_freeze
def test_a_fake_clock_is_moved_by_the_test_alone(frozen):
    with frozen():
        clock = FakeClock()
        bucket = AsyncTokenBucket(1, 1, clock=clock)
        before = SYSTEM_CLOCK.now()
        assert finished(awaiting(bucket)) >= 0
        assert clock.now() == 2_000_000
        assert SYSTEM_CLOCK.now() > before


@each_freeze
def test_a_waiting_coroutine_notices_when_a_fake_clock_is_advanced(frozen):
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(1, 1, 0, clock=clock)
    with frozen():
        waiting = threading.Thread(target=awaiting(bucket), daemon=True)
        waiting.start()
        while not clock.sleeping:
            pass
        clock.advance(1)
        waiting.join(PATIENCE)
    assert not waiting.is_alive()


IMPORTED_IN_FREEZE = """
    import asyncio
    from freezegun import freeze_time
    with freeze_time("2020-02-29"):
        from bucketflow import AsyncTokenBucket, TokenBucket
        bucket, other = TokenBucket(1, 20), AsyncTokenBucket(1, 20)
        assert bucket.consume(block=True) and bucket.consume(block=True)
        assert asyncio.run(other.consume(block=True)) and asyncio.run(other.consume(block=True))
    assert bucket.consume(block=True) and asyncio.run(other.consume(block=True))
"""


def test_the_library_may_be_imported_in_a_freeze():
    pytest.importorskip("freezegun")
    subprocess.run([sys.executable, "-c", textwrap.dedent(IMPORTED_IN_FREEZE)], check=True, timeout=PATIENCE)
