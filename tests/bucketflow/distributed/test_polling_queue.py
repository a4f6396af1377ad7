"""Only the head polls; when a waiter leaves, for whatever reason, the next one polls."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import until

from bucketflow import ConfigError, Limit
from bucketflow.algorithm import gcra as core
from bucketflow.distributed.polling_queue import AsyncPollingQueue, ThreadPollingQueue
from bucketflow.testing import FakeClock


class Remote:
    """A remote bucket: it can only be polled."""

    def __init__(self, clock, capacity=1, fill_rate=1):
        self.clock, self.limit = clock, Limit(capacity, fill_rate)
        self.full_at, self.polls = core.take(self.limit, core.FULL, clock.now(), capacity), 0

    def poll(self):
        self.polls += 1
        decision, self.full_at = core.consume(self.limit, self.full_at, self.clock.now())
        return decision

    async def poll_async(self):
        await asyncio.sleep(0)
        return self.poll()


@pytest.fixture
def clock():
    return FakeClock(jump=False)


@pytest.fixture
def remote(clock):
    return Remote(clock)


@pytest.fixture
def queue(clock):
    return ThreadPollingQueue(clock)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_threads_are_granted_in_order_and_only_the_head_polls(clock, remote, queue, pool):
    granted, waits = [], []
    for name in range(4):
        waits.append(pool.submit(lambda name=name: (queue.wait(remote.poll), granted.append(name))))
        until(lambda name=name: len(queue.waiters) == name + 1 and clock.sleeping == (1,))
    assert queue.waiters
    assert remote.polls == 1
    for second in range(1, 5):
        clock.advance(1)
        waits[second - 1].result(timeout=30)
        assert granted == list(range(second))
        until(lambda second=second: clock.sleeping == ((second + 1,) if second < 4 else ()))
    assert remote.polls == 8  # once on becoming the head, and once after retry_after
    assert not queue.waiters


def test_a_refusal_beyond_the_timeout_returns_at_once(clock, remote, queue):
    decision = queue.wait(remote.poll, timeout=0.999)
    assert (decision.allowed, decision.retry_after, clock.now()) == (False, 1, 0)
    assert not queue.waiters


def test_a_waiter_behind_a_head_that_waits_longer_is_refused_without_a_poll(clock, remote, queue, pool):
    head = pool.submit(queue.wait, remote.poll)
    until(lambda: clock.sleeping == (1,))
    clock.advance(0.25)
    refused = queue.wait(remote.poll, timeout=0.5)
    assert refused == queue.current_refusal()
    assert (refused.allowed, refused.retry_after, refused.binding, remote.polls) == (False, 0.75, 0, 1)
    clock.advance(0.75)
    assert head.result(timeout=30).allowed


def test_a_waiter_whose_poll_raises_leaves_and_the_next_one_polls(clock, remote, queue, pool):
    def fail():
        clock.sleep(1, queue.waiters and next(iter(queue.waiters)).event)
        raise OSError("gone")

    failing = pool.submit(queue.wait, fail)
    until(lambda: clock.sleeping == (1,))
    next_one = pool.submit(queue.wait, remote.poll)
    until(lambda: len(queue.waiters) == 2)
    clock.advance(1)
    with pytest.raises(OSError, match="gone"):
        failing.result(timeout=30)
    assert next_one.result(timeout=30).allowed


def test_wake_head_lets_the_head_poll_at_once(clock, remote, queue, pool):
    head = pool.submit(queue.wait, remote.poll)
    until(lambda: clock.sleeping == (1,))
    remote.full_at = core.FULL
    queue.wake_head()
    assert head.result(timeout=30).allowed
    queue.wake_head()  # without a head it does nothing


@pytest.mark.parametrize("timeout", [-1, "1", True])
def test_an_invalid_timeout_is_named_in_the_error(remote, queue, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        queue.wait(remote.poll, timeout)
    assert not queue.waiters


async def test_coroutines_are_granted_in_order_and_the_next_one_polls_after_a_cancellation():
    clock = FakeClock()
    remote, queue, granted = Remote(clock), AsyncPollingQueue(clock), []

    async def take(name):
        await queue.wait(remote.poll_async)
        granted.append((name, clock.now() // 1_000_000))

    tasks = [asyncio.create_task(take(name)) for name in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert granted == [(0, 1), (1, 2), (3, 3), (4, 4)]
    assert not queue.waiters


async def test_the_next_waiter_polls_after_the_head_is_cancelled(clock, remote):
    queue = AsyncPollingQueue(clock)
    head, behind = [asyncio.create_task(queue.wait(remote.poll_async)) for _ in range(2)]
    await asyncio.to_thread(until, lambda: clock.sleeping == (1,))
    head.cancel()
    await asyncio.to_thread(until, lambda: remote.polls == 2 and clock.sleeping == (1,))
    clock.advance(1)
    assert (await behind).allowed
    assert (await queue.wait(remote.poll_async, timeout=0.5)).retry_after == 1


def test_event_loops_of_several_threads_share_one_queue(clock, remote, pool):
    queue, waits = AsyncPollingQueue(clock), []
    for index in range(3):
        waits.append(pool.submit(asyncio.run, queue.wait(remote.poll_async, timeout=60)))
        until(lambda index=index: len(queue.waiters) == index + 1 and len(clock.sleeping) == index + 1)
    for second, wait in enumerate(waits, 1):
        until(lambda second=second: clock.sleeping[:1] == (second,))
        clock.advance(1)
        assert wait.result(timeout=30).allowed
    assert not queue.waiters
