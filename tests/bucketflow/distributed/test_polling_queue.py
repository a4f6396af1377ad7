"""Only the head asks; whoever leaves, however it leaves, lets the next one ask."""

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
    """A bucket somewhere else: it answers questions and nothing more."""

    def __init__(self, clock, capacity=1, fill_rate=1):
        self.clock, self.limit = clock, Limit(capacity, fill_rate)
        self.full_at, self.questions = core.take(self.limit, core.FULL, clock.now(), capacity), 0

    def ask(self):
        self.questions += 1
        decision, self.full_at = core.consume(self.limit, self.full_at, self.clock.now())
        return decision

    async def ask_async(self):
        await asyncio.sleep(0)
        return self.ask()


@pytest.fixture
def clock():
    return FakeClock(jump=False)


@pytest.fixture
def remote(clock):
    return Remote(clock)


@pytest.fixture
def turnstile(clock):
    return ThreadPollingQueue(clock)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_threads_are_served_in_order_and_only_the_head_asks(clock, remote, turnstile, pool):
    served, waits = [], []
    for name in range(4):
        waits.append(pool.submit(lambda name=name: (turnstile.wait(remote.ask), served.append(name))))
        until(lambda name=name: len(turnstile.line) == name + 1 and clock.sleeping == (1,))
    assert turnstile.line
    assert remote.questions == 1
    for second in range(1, 5):
        clock.advance(1)
        waits[second - 1].result(timeout=30)
        assert served == list(range(second))
        until(lambda second=second: clock.sleeping == ((second + 1,) if second < 4 else ()))
    assert remote.questions == 8  # asked on becoming the head, and when told to come again
    assert not turnstile.line


def test_a_refusal_beyond_the_timeout_comes_back_at_once(clock, remote, turnstile):
    decision = turnstile.wait(remote.ask, timeout=0.999)
    assert (decision.allowed, decision.retry_after, clock.now()) == (False, 1, 0)
    assert not turnstile.line


def test_who_stands_behind_a_head_that_waits_longer_is_refused_without_a_question(clock, remote, turnstile, pool):
    head = pool.submit(turnstile.wait, remote.ask)
    until(lambda: clock.sleeping == (1,))
    clock.advance(0.25)
    refused = turnstile.wait(remote.ask, timeout=0.5)
    assert refused == turnstile.current_refusal()
    assert (refused.allowed, refused.retry_after, refused.binding, remote.questions) == (False, 0.75, 0, 1)
    clock.advance(0.75)
    assert head.result(timeout=30).allowed


def test_one_whose_question_fails_leaves_and_the_next_one_asks(clock, remote, turnstile, pool):
    def fail():
        clock.sleep(1, turnstile.line and next(iter(turnstile.line)).event)
        raise OSError("gone")

    failing = pool.submit(turnstile.wait, fail)
    until(lambda: clock.sleeping == (1,))
    next_one = pool.submit(turnstile.wait, remote.ask)
    until(lambda: len(turnstile.line) == 2)
    clock.advance(1)
    with pytest.raises(OSError, match="gone"):
        failing.result(timeout=30)
    assert next_one.result(timeout=30).allowed


def test_a_nudge_lets_the_head_ask_at_once(clock, remote, turnstile, pool):
    head = pool.submit(turnstile.wait, remote.ask)
    until(lambda: clock.sleeping == (1,))
    remote.full_at = core.FULL
    turnstile.wake_head()
    assert head.result(timeout=30).allowed
    turnstile.wake_head()  # nobody there


@pytest.mark.parametrize("timeout", [-1, "1", True])
def test_a_timeout_that_is_no_time_is_named(remote, turnstile, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        turnstile.wait(remote.ask, timeout)
    assert not turnstile.line


async def test_coroutines_are_served_in_order_and_a_cancelled_one_lets_the_next_ask():
    clock = FakeClock()
    remote, turnstile, served = Remote(clock), AsyncPollingQueue(clock), []

    async def take(name):
        await turnstile.wait(remote.ask_async)
        served.append((name, clock.now() // 1_000_000))

    tasks = [asyncio.create_task(take(name)) for name in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[2], asyncio.CancelledError)
    assert served == [(0, 1), (1, 2), (3, 3), (4, 4)]
    assert not turnstile.line


async def test_a_cancelled_head_lets_the_next_one_ask(clock, remote):
    turnstile = AsyncPollingQueue(clock)
    head, behind = [asyncio.create_task(turnstile.wait(remote.ask_async)) for _ in range(2)]
    await asyncio.to_thread(until, lambda: clock.sleeping == (1,))
    head.cancel()
    await asyncio.to_thread(until, lambda: remote.questions == 2 and clock.sleeping == (1,))
    clock.advance(1)
    assert (await behind).allowed
    assert (await turnstile.wait(remote.ask_async, timeout=0.5)).retry_after == 1


def test_loops_in_several_threads_wait_in_one_line(clock, remote, pool):
    turnstile, waits = AsyncPollingQueue(clock), []
    for place in range(3):
        waits.append(pool.submit(asyncio.run, turnstile.wait(remote.ask_async, timeout=60)))
        until(lambda place=place: len(turnstile.line) == place + 1 and len(clock.sleeping) == place + 1)
    for second, wait in enumerate(waits, 1):
        until(lambda second=second: clock.sleeping[:1] == (second,))
        clock.advance(1)
        assert wait.result(timeout=30).allowed
    assert not turnstile.line
