"""Callers that wait for one server are asked for together, and each is answered as if it had come alone."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio
from waiting import until

from bucketflow import StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.batching import AsyncBatcher, ThreadBatcher

SLOW = 0.001  # tokens per second: none comes while a test runs


def evalsha_calls(client):
    return client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0)


# The rule, with a server under the test's control --------------------------------------------------------------------


class Path:
    """Answers each cost with itself."""

    def answer_locally(self, cost):
        del cost

    def call(self, costs):
        return costs

    def answers(self, call, reply):
        return [(cost, *reply) for cost in call]


class Server:
    """Answers when it is told to, and remembers what it was asked."""

    def __init__(self):
        self.asked = []
        self.error = None
        self.gate = threading.Semaphore(0)

    def run_call(self, call):
        (result,) = self.run_all([call])
        if isinstance(result, Exception):
            raise result
        return result

    def run_all(self, calls):
        self.asked.append(list(calls))
        assert self.gate.acquire(timeout=30)
        return [self.error or () for _ in calls]

    async def run_call_async(self, call):
        (result,) = await self.run_all_async([call])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_all_async(self, calls):
        self.asked.append(list(calls))
        await asyncio.to_thread(self.gate.acquire, timeout=30)
        return [self.error or () for _ in calls]


def timed_out():
    error = StoreUnavailable("here", "no answer")
    error.__cause__ = redis.TimeoutError("no answer")
    return error


@pytest.fixture
def server():
    return Server()


@pytest.fixture
def batcher(server):
    return ThreadBatcher(server.run_call, server.run_all, 30)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def ask_while_one_is_on_its_way(batcher, server, pool, questions):
    first = pool.submit(batcher.submit, Path(), 1.0)
    until(lambda: server.asked)
    others = []
    for path, cost in questions:
        others.append(pool.submit(batcher.submit, path, cost))
        until(lambda: len(batcher._waiting) == len(others))
    return first, others


def test_those_who_come_meanwhile_are_asked_for_in_one_exchange_and_one_call_a_path(batcher, server, pool):
    one, other = Path(), Path()
    questions = [(one, 2.0), (other, 3.0), (one, 4.0)]
    first, others = ask_while_one_is_on_its_way(batcher, server, pool, questions)
    server.gate.release(2)
    assert first.result(30) == (1.0,)
    assert [future.result(30) for future in others] == [(2.0,), (3.0,), (4.0,)]
    assert server.asked == [[(1.0,)], [(2.0, 4.0), (3.0,)]]


def test_whoever_comes_when_nobody_asks_is_asked_for_at_once(batcher, server):
    server.gate.release(2)
    assert batcher.submit(Path(), 1.0) == (1.0,)
    assert batcher.submit(Path(), 2.0) == (2.0,)
    assert server.asked == [[(1.0,)], [(2.0,)]]


def test_an_error_is_told_to_each_by_an_error_of_its_own(batcher, server, pool):
    first, others = ask_while_one_is_on_its_way(batcher, server, pool, [(Path(), 2.0), (Path(), 3.0)])
    server.gate.release()
    first.result(30)
    until(lambda: len(server.asked) == 2)
    server.error = StoreUnavailable("here", "it burns")
    server.gate.release()
    errors = [future.exception(30) for future in others]
    assert [error.reason for error in errors] == ["it burns", "it burns"]
    assert errors[0] is not errors[1]


def test_a_server_that_was_late_is_not_waited_for_again_by_those_behind(batcher, server, pool):
    first, others = ask_while_one_is_on_its_way(batcher, server, pool, [(Path(), 2.0), (Path(), 3.0)])
    server.error = timed_out()
    server.gate.release()
    for future in (first, *others):
        assert isinstance(future.exception(30), StoreUnavailable)
    assert server.asked == [[(1.0,)]]
    server.error = None
    server.gate.release()
    assert batcher.submit(Path(), 4.0) == (4.0,)


def test_an_error_of_another_kind_does_not_answer_those_behind(batcher, server, pool):
    first, (other,) = ask_while_one_is_on_its_way(batcher, server, pool, [(Path(), 2.0)])
    server.error = StoreUnavailable("here", "it burns")
    server.gate.release()
    assert isinstance(first.exception(30), StoreUnavailable)
    until(lambda: len(server.asked) == 2)
    server.error = None
    server.gate.release()
    assert other.result(30) == (2.0,)


class Interrupted(BaseException):
    pass


class InterruptedTurn:
    """A turn whose owner gets Ctrl-C while waiting for it."""

    def acquire(self, timeout=None):
        if timeout is not None:  # the other one is the batcher's own, and never waits
            raise Interrupted


def test_who_is_interrupted_while_waiting_is_not_asked_for_and_the_others_are(batcher, server, pool, monkeypatch):
    first = pool.submit(batcher.submit, Path(), 1.0)
    until(lambda: server.asked)
    with monkeypatch.context() as patch:
        patch.setattr("bucketflow.redis_client.batching.threading.Lock", InterruptedTurn)
        with pytest.raises(Interrupted):
            batcher.submit(Path(), 2.0)
    other = pool.submit(batcher.submit, Path(), 3.0)
    until(lambda: len(batcher._waiting) == 1)
    server.gate.release(2)
    assert first.result(30) == (1.0,)
    assert other.result(30) == (3.0,)
    assert server.asked == [[(1.0,)], [(3.0,)]]


def test_when_whoever_asks_was_lost_another_takes_over(server, pool):
    batcher = ThreadBatcher(server.run_call, server.run_all, 0.01)
    batcher._asker = -1  # Ctrl-C came between two lines
    server.gate.release(2)
    assert pool.submit(batcher.submit, Path(), 1.0).result(30) == (1.0,)
    assert pool.submit(batcher.submit, Path(), 2.0).result(30) == (2.0,)


def test_a_signal_handler_may_ask_while_its_thread_does(batcher, server):
    answers = []

    class Interrupting(Path):
        def call(self, costs):
            if costs == (1.0,):
                answers.append(batcher.submit(self, 2.0))
            return costs

    server.gate.release(2)
    answers.append(batcher.submit(Interrupting(), 1.0))
    assert answers == [(2.0,), (1.0,)]


async def test_coroutines_are_asked_for_together_too(server):
    batcher, one, other = AsyncBatcher(server.run_call_async, server.run_all_async), Path(), Path()
    tasks = [asyncio.create_task(batcher.submit(one, 1.0))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(batcher.submit(path, cost)) for path, cost in ((one, 2.0), (other, 3.0), (one, 4.0))]
    await asyncio.sleep(0)
    server.gate.release(2)
    assert await asyncio.gather(*tasks) == [(1.0,), (2.0,), (3.0,), (4.0,)]
    assert server.asked == [[(1.0,)], [(2.0, 4.0), (3.0,)]]


async def test_a_coroutine_that_is_cancelled_before_its_call_has_left_is_not_asked_for(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0, 3.0)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    server.gate.release(2)
    await asyncio.wait(tasks)
    assert tasks[1].cancelled()
    assert tasks[2].result() == (3.0,)
    assert server.asked == [[(1.0,)], [(3.0,)]]


async def test_cancelling_the_one_who_asks_leaves_the_others_their_answers(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    server.gate.release(2)
    assert await tasks[1] == (2.0,)
    assert tasks[0].cancelled()


async def test_coroutines_behind_a_late_server_are_told_at_once(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0, 3.0)]
    await asyncio.sleep(0)
    server.error = timed_out()
    server.gate.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert server.asked == [[(1.0,)]]


# The promise, on a real server ---------------------------------------------------------------------------------------


def test_many_threads_share_round_trips_and_together_get_exactly_what_there_is(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 120, SLOW)
    leaves = [RedisTokenBucket(redis_client, f"tenant{number}", 50, SLOW, parent=root) for number in range(4)]
    root.consume(0)
    before = evalsha_calls(redis_client)

    def work(number):
        leaf = leaves[number % 4]
        return [leaf.consume() for _ in range(25)]

    with ThreadPoolExecutor(16) as pool:
        granted = [sum(answers) for answers in pool.map(work, range(16))]
    assert sum(granted) == 120
    assert max(Counter(number % 4 for number in range(16) for _ in range(granted[number])).values()) <= 50
    assert evalsha_calls(redis_client) - before < 16 * 25
    assert root.tokens == pytest.approx(0, abs=0.01)


async def test_many_coroutines_share_round_trips_and_together_get_exactly_what_there_is(redis_server, redis_client):
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        bucket = AsyncRedisTokenBucket(client, "shop", 100, SLOW)
        await bucket.get_tokens()
        before = evalsha_calls(redis_client)
        answers = await asyncio.gather(*(bucket.consume() for _ in range(200)))
        assert sum(answers) == 100
        assert answers[:100] == [True] * 100  # first come, first served
        assert evalsha_calls(redis_client) - before <= 3
        await bucket.close()


@pytest.mark.usefixtures("redis_client")
async def test_different_costs_and_looks_in_one_call_are_answered_each_for_itself(redis_server):
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        bucket = AsyncRedisTokenBucket(client, "shop", 10, SLOW)
        tokens, first, look, too_much, rest = await asyncio.gather(
            bucket.get_tokens(), bucket.try_consume(7), bucket.wait_time(3), bucket.try_consume(4), bucket.consume(3)
        )
        assert (tokens, first.allowed, look, too_much.allowed, rest) == (10, True, 0, False, True)
        assert too_much.retry_after == pytest.approx(1000, abs=1)
        await bucket.close()


async def test_one_bucket_whose_key_is_somebody_elses_does_not_hurt_those_asked_with_it(redis_server, redis_client):
    redis_client.set("bucketflow:{foreign}", "mine")
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        buckets = [AsyncRedisTokenBucket(client, key, 5, SLOW) for key in ("first", "foreign", "other")]
        first, foreign, other = await asyncio.gather(*(bucket.consume() for bucket in buckets), return_exceptions=True)
        assert (first, other) == (True, True)
        assert isinstance(foreign, StoreUnavailable)
        await buckets[0].close()
