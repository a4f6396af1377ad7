"""Concurrent requests share round trips, and each gets the reply that it would have got alone."""

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


# The rules, with a server that the test controls ----------------------------------------------------------------------


class Path:
    """Replies to each cost with the cost itself."""

    def answer_locally(self, cost):
        del cost

    def prepare(self, costs):
        return costs, lambda reply: [(cost, *reply) for cost in costs]


class Server:
    """Records each round trip, and replies when the test releases it."""

    def __init__(self):
        self.round_trips = []
        self.error = None
        self.replies = threading.Semaphore(0)

    def run_call(self, call):
        (result,) = self.run_all([call])
        if isinstance(result, Exception):
            raise result
        return result

    def run_all(self, calls):
        self.round_trips.append(list(calls))
        assert self.replies.acquire(timeout=30)
        return [self.error or () for _ in calls]

    async def run_call_async(self, call):
        (result,) = await self.run_all_async([call])
        if isinstance(result, Exception):
            raise result
        return result

    async def run_all_async(self, calls):
        self.round_trips.append(list(calls))
        await asyncio.to_thread(self.replies.acquire, timeout=30)
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


def submit_while_one_is_in_flight(batcher, server, pool, requests):
    first = pool.submit(batcher.submit, Path(), 1.0)
    until(lambda: server.round_trips)
    others = []
    for path, cost in requests:
        others.append(pool.submit(batcher.submit, path, cost))
        until(lambda: len(batcher._pending) == len(others))
    return first, others


def test_requests_during_a_round_trip_share_the_next_one_with_one_call_per_path(batcher, server, pool):
    one, other = Path(), Path()
    requests = [(one, 2.0), (other, 3.0), (one, 4.0)]
    first, others = submit_while_one_is_in_flight(batcher, server, pool, requests)
    server.replies.release(2)
    assert first.result(30) == (1.0,)
    assert [future.result(30) for future in others] == [(2.0,), (3.0,), (4.0,)]
    assert server.round_trips == [[(1.0,)], [(2.0, 4.0), (3.0,)]]


def test_a_request_is_sent_at_once_when_no_batch_is_in_flight(batcher, server):
    server.replies.release(2)
    assert batcher.submit(Path(), 1.0) == (1.0,)
    assert batcher.submit(Path(), 2.0) == (2.0,)
    assert server.round_trips == [[(1.0,)], [(2.0,)]]


def test_each_request_of_a_failed_call_raises_its_own_exception_object(batcher, server, pool):
    first, others = submit_while_one_is_in_flight(batcher, server, pool, [(Path(), 2.0), (Path(), 3.0)])
    server.replies.release()
    first.result(30)
    until(lambda: len(server.round_trips) == 2)
    server.error = StoreUnavailable("here", "out of memory")
    server.replies.release()
    errors = [future.exception(30) for future in others]
    assert [error.reason for error in errors] == ["out of memory", "out of memory"]
    assert errors[0] is not errors[1]


def test_a_timeout_fails_the_pending_requests_without_another_round_trip(batcher, server, pool):
    first, others = submit_while_one_is_in_flight(batcher, server, pool, [(Path(), 2.0), (Path(), 3.0)])
    server.error = timed_out()
    server.replies.release()
    for future in (first, *others):
        assert isinstance(future.exception(30), StoreUnavailable)
    assert server.round_trips == [[(1.0,)]]
    server.error = None
    server.replies.release()
    assert batcher.submit(Path(), 4.0) == (4.0,)


def test_an_error_other_than_a_timeout_does_not_fail_the_pending_requests(batcher, server, pool):
    first, (other,) = submit_while_one_is_in_flight(batcher, server, pool, [(Path(), 2.0)])
    server.error = StoreUnavailable("here", "out of memory")
    server.replies.release()
    assert isinstance(first.exception(30), StoreUnavailable)
    until(lambda: len(server.round_trips) == 2)
    server.error = None
    server.replies.release()
    assert other.result(30) == (2.0,)


class Interrupted(BaseException):
    pass


class InterruptedLock:
    """A lock whose owner gets Ctrl-C while it waits for it."""

    def acquire(self, timeout=None):
        if timeout is not None:  # the batcher's own first acquire has no timeout, and never waits
            raise Interrupted


def test_an_interrupted_pending_request_is_not_sent_and_the_others_are(batcher, server, pool, monkeypatch):
    first = pool.submit(batcher.submit, Path(), 1.0)
    until(lambda: server.round_trips)
    with monkeypatch.context() as patch:
        patch.setattr("bucketflow.redis_client.batching.threading.Lock", InterruptedLock)
        with pytest.raises(Interrupted):
            batcher.submit(Path(), 2.0)
    other = pool.submit(batcher.submit, Path(), 3.0)
    until(lambda: len(batcher._pending) == 1)
    server.replies.release(2)
    assert first.result(30) == (1.0,)
    assert other.result(30) == (3.0,)
    assert server.round_trips == [[(1.0,)], [(3.0,)]]


def test_a_pending_request_takes_the_lead_when_the_leader_is_lost(server, pool):
    batcher = ThreadBatcher(server.run_call, server.run_all, 0.01)
    batcher._leader = -1  # a leader that Ctrl-C interrupted between two lines
    server.replies.release(2)
    assert pool.submit(batcher.submit, Path(), 1.0).result(30) == (1.0,)
    assert pool.submit(batcher.submit, Path(), 2.0).result(30) == (2.0,)


def test_a_signal_handler_may_submit_while_its_thread_is_the_leader(batcher, server):
    replies = []

    class Interrupting(Path):
        def prepare(self, costs):
            if costs == (1.0,):
                replies.append(batcher.submit(self, 2.0))
            return super().prepare(costs)

    server.replies.release(2)
    replies.append(batcher.submit(Interrupting(), 1.0))
    assert replies == [(2.0,), (1.0,)]


async def test_requests_of_coroutines_share_the_next_round_trip(server):
    batcher, one, other = AsyncBatcher(server.run_call_async, server.run_all_async), Path(), Path()
    tasks = [asyncio.create_task(batcher.submit(one, 1.0))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(batcher.submit(path, cost)) for path, cost in ((one, 2.0), (other, 3.0), (one, 4.0))]
    await asyncio.sleep(0)
    server.replies.release(2)
    assert await asyncio.gather(*tasks) == [(1.0,), (2.0,), (3.0,), (4.0,)]
    assert server.round_trips == [[(1.0,)], [(2.0, 4.0), (3.0,)]]


async def test_a_coroutine_cancelled_while_pending_is_not_sent(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0, 3.0)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    server.replies.release(2)
    await asyncio.wait(tasks)
    assert tasks[1].cancelled()
    assert tasks[2].result() == (3.0,)
    assert server.round_trips == [[(1.0,)], [(3.0,)]]


async def test_cancelling_the_coroutine_in_flight_does_not_fail_the_pending_ones(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    server.replies.release(2)
    assert await tasks[1] == (2.0,)
    assert tasks[0].cancelled()


async def test_a_timeout_fails_the_pending_coroutines_without_another_round_trip(server):
    batcher = AsyncBatcher(server.run_call_async, server.run_all_async)
    tasks = [asyncio.create_task(batcher.submit(Path(), cost)) for cost in (1.0, 2.0, 3.0)]
    await asyncio.sleep(0)
    server.error = timed_out()
    server.replies.release()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    assert server.round_trips == [[(1.0,)]]


# The promises, on a real server ---------------------------------------------------------------------------------------


def test_many_threads_share_round_trips_and_are_granted_exactly_the_capacity(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 120, SLOW)
    leaves = [RedisTokenBucket(redis_client, f"tenant{number}", 50, SLOW, parent=root) for number in range(4)]
    root.consume(0)
    before = evalsha_calls(redis_client)

    def work(number):
        leaf = leaves[number % 4]
        return [leaf.consume() for _ in range(25)]

    with ThreadPoolExecutor(16) as pool:
        granted = [sum(results) for results in pool.map(work, range(16))]
    assert sum(granted) == 120
    assert max(Counter(number % 4 for number in range(16) for _ in range(granted[number])).values()) <= 50
    assert evalsha_calls(redis_client) - before < 16 * 25
    assert root.tokens == pytest.approx(0, abs=0.01)


async def test_many_coroutines_share_round_trips_and_are_granted_exactly_the_capacity(redis_server, redis_client):
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        bucket = AsyncRedisTokenBucket(client, "shop", 100, SLOW)
        await bucket.get_tokens()
        before = evalsha_calls(redis_client)
        grants = await asyncio.gather(*(bucket.consume() for _ in range(200)))
        assert sum(grants) == 100
        assert grants[:100] == [True] * 100  # in order of arrival
        assert evalsha_calls(redis_client) - before <= 3
        await bucket.close()


@pytest.mark.usefixtures("redis_client")
async def test_costs_and_looks_that_share_a_call_are_evaluated_separately(redis_server):
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        bucket = AsyncRedisTokenBucket(client, "shop", 10, SLOW)
        tokens, first, look, too_much, rest = await asyncio.gather(
            bucket.get_tokens(), bucket.try_consume(7), bucket.wait_time(3), bucket.try_consume(4), bucket.consume(3)
        )
        assert (tokens, first.allowed, look, too_much.allowed, rest) == (10, True, 0, False, True)
        assert too_much.retry_after == pytest.approx(1000, abs=1)
        await bucket.close()


async def test_a_bucket_with_a_foreign_key_does_not_fail_the_others_in_its_batch(redis_server, redis_client):
    redis_client.set("bucketflow:{foreign}", "foreign")
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        buckets = [AsyncRedisTokenBucket(client, key, 5, SLOW) for key in ("first", "foreign", "other")]
        first, foreign, other = await asyncio.gather(*(bucket.consume() for bucket in buckets), return_exceptions=True)
        assert (first, other) == (True, True)
        assert isinstance(foreign, StoreUnavailable)
        await buckets[0].close()
