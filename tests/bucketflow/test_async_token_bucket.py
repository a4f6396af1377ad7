"""Token buckets in coroutines: the promises to threads, cancellation, and several event loops."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from bucketflow import AsyncTokenBucket, ConfigError, CostExceedsCapacity
from bucketflow.testing import FakeClock


@pytest.fixture
def clock():
    """Return a fake clock that jumps to the earliest deadline of a sleeper."""
    return FakeClock()


async def start(coroutine):
    """Start *coroutine* and let it run until it waits."""
    task = asyncio.create_task(coroutine)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


async def test_the_methods_of_0_1_0_are_awaited(clock):
    bucket = AsyncTokenBucket(3, 10, clock=clock)
    assert await bucket.consume(2) is True
    assert await bucket.consume(2) is False
    assert await bucket.get_tokens() == 1
    assert await bucket.consume(2, block=True) is True
    assert clock.now() == 100_000


async def test_waiting_coroutines_are_served_in_order_of_arrival(clock):
    bucket = AsyncTokenBucket(3, 1, 0, clock=clock)
    served = []

    async def take(name, cost):
        await bucket.consume(cost, block=True)
        served.append((name, clock.now() // 1_000_000))

    await asyncio.gather(take("first", 1), take("second", 3), take("third", 1), take("fourth", 2))
    assert served == [("first", 1), ("second", 4), ("third", 5), ("fourth", 7)]


async def test_no_caller_overtakes_a_waiting_one():
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(5, 1, 4, clock=clock)
    large = await start(bucket.consume(5, block=True))
    assert await bucket.consume(1) is False
    assert bucket.wait_time(1) == bucket.try_consume(1).retry_after == 2
    clock.advance(1)
    assert await large
    assert await bucket.get_tokens() == 0


async def test_a_cancelled_waiter_leaves_the_queue_and_the_ones_behind_it_move_up():
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(2, 1, 0, clock=clock)
    first, second, third = [await start(bucket.consume(cost, block=True)) for cost in (1, 2, 1)]
    assert clock.sleeping == (1, 3, 4)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert clock.sleeping == (1, 2)
    clock.advance(2)
    assert await asyncio.gather(first, third) == [True, True]
    assert await bucket.get_tokens() == 0


async def test_a_waiter_cancelled_at_its_grant_time_returns_its_tokens():
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(2, 1, 0, clock=clock)
    waiter = await start(bucket.consume(2, block=True))
    clock.advance(2)
    assert bucket.wait_time(1) == 1  # the call grants what is due: the waiter has its tokens
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await bucket.get_tokens() == 2


async def test_a_caller_that_would_wait_beyond_its_timeout_is_refused_at_once_and_spends_nothing(clock):
    bucket = AsyncTokenBucket(2, 1, 0, clock=clock)
    assert await bucket.consume(2, block=True, timeout=1.999) is False
    assert clock.now() == 0
    assert await bucket.consume(2, block=True, timeout=2) is True


async def test_a_caller_cancelled_by_an_outer_timeout_leaves_the_queue():
    bucket = AsyncTokenBucket(1, 0.001, 0)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(bucket.consume(block=True), 0.01)
    assert bucket.wait_time() < 1000


async def test_reserve_and_refund_need_no_await(clock):
    bucket = AsyncTokenBucket(2, 1, clock=clock)
    assert bucket.reserve(2).ready
    reservation = bucket.reserve(2)
    assert reservation.wait == 2
    assert reservation.cancel()
    bucket.refund(1)
    assert await bucket.get_tokens() == 1


def test_loops_in_several_threads_share_one_bucket_in_order():
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(4, 1, 0, clock=clock)
    reservation = bucket.reserve(4)
    with ThreadPoolExecutor(4) as pool:
        waiters = []
        for ahead in range(4):
            waiters.append(pool.submit(asyncio.run, bucket.consume(block=True)))
            while len(clock.sleeping) <= ahead:
                threading.Event().wait(0.0005)
        assert clock.sleeping == (5, 6, 7, 8)
        reservation.cancel()  # from a thread without a loop
        while clock.sleeping != (1, 2, 3, 4):
            threading.Event().wait(0.0005)
        clock.advance(4)
        assert [waiter.result(timeout=30) for waiter in waiters] == [True] * 4
    assert asyncio.run(bucket.get_tokens()) == 0


def test_a_loop_closed_over_its_waiter_blocks_no_other_caller():
    clock = FakeClock(jump=False)
    bucket = AsyncTokenBucket(2, 1, 0, clock=clock)
    loop = asyncio.new_event_loop()
    coroutine = bucket.consume(2, block=True)
    task = loop.create_task(coroutine)
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    loop.close()
    bucket.refund(1)  # moves the waiter of the closed loop up; its loop cannot be woken
    assert bucket.wait_time() == 2
    clock.advance(1)
    assert asyncio.run(bucket.get_tokens()) == 0
    clock.advance(1)
    assert asyncio.run(bucket.consume())
    task._log_destroy_pending = False
    coroutine.close()


async def test_the_system_clock_serves_coroutines():
    bucket = AsyncTokenBucket(1, 1000, 0)
    assert all(await asyncio.gather(*(bucket.consume(block=True, timeout=60) for _ in range(20))))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tokens": -1}, ConfigError),
        ({"tokens": True}, ConfigError),
        ({"tokens": 4}, CostExceedsCapacity),
        ({"timeout": 1}, ConfigError),
        ({"timeout": -1, "block": True}, ConfigError),
    ],
)
async def test_invalid_input_raises_the_same_errors_as_in_threads(arguments, error):
    with pytest.raises(error):
        await AsyncTokenBucket(3, 1).consume(**arguments)
