"""Token buckets in threads: never more than the limit, in order of arrival, and a refusal spends nothing."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from waiting import BlockedCallers, until

from bucketflow import ConfigError, CostExceedsCapacity, HierarchicalTokenBucket, TokenBucket
from bucketflow.testing import FakeClock

NO_COST = [-1, -0.5, math.nan, math.inf, True, False, "1", None, Decimal(-1), [1]]
KINDS = [TokenBucket, HierarchicalTokenBucket]

each_kind = pytest.mark.parametrize("kind", KINDS)
#: A hierarchical bucket answers False to a cost above its capacity if the caller does not block.
raising_kinds = pytest.mark.parametrize(
    ("kind", "block"), [(TokenBucket, False), (TokenBucket, True), (HierarchicalTokenBucket, True)]
)


class InterruptedClock(FakeClock):
    """A clock whose sleep is interrupted by Ctrl-C."""

    def sleep(self, *_):
        raise KeyboardInterrupt


@pytest.fixture
def callers():
    """Return blocked callers in threads, see waiting.py."""
    with BlockedCallers() as callers:
        yield callers


@each_kind
@pytest.mark.usefixtures("often_switched")
def test_racing_threads_never_get_more_than_the_burst(kind):
    bucket = kind(500, 1, clock=FakeClock())
    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(lambda _: sum(bucket.consume() for _ in range(500)), range(8)))
    assert granted == 500
    assert bucket.tokens == 0


@each_kind
def test_a_blocked_caller_waits_exactly_as_long_as_necessary(kind):
    clock = FakeClock()
    bucket = kind(2, 4, clock=clock)
    assert all(bucket.consume(block=True) for _ in range(10))
    assert clock.now() == 2_000_000


@each_kind
def test_blocked_callers_are_served_in_order_of_arrival(kind, callers):
    bucket = callers.bucket(kind, 3, 1)
    for name, cost in [("first", 1), ("second", 3), ("third", 1), ("fourth", 2)]:
        callers.add(name, cost)
    callers.until([], 1, 4, 5, 7)
    callers.clock.advance(1)
    callers.until(["first"], 4, 5, 7)
    callers.clock.advance(3)
    callers.until(["first", "second"], 5, 7)
    callers.clock.advance(1)
    callers.until(["first", "second", "third"], 7)
    callers.clock.advance(2)
    callers.until(["first", "second", "third", "fourth"])
    assert bucket.tokens == pytest.approx(0)


@each_kind
def test_no_caller_overtakes_a_waiting_one(kind, callers):
    bucket = callers.bucket(kind, 5, 1)
    callers.add("large", 5)
    callers.clock.advance(4)
    assert bucket.tokens == pytest.approx(4)
    assert not bucket.consume(1)
    assert bucket.try_consume(1).retry_after == bucket.wait_time(1) == 2  # 1 s until the large request, 1 s more
    assert bucket.consume(0)
    callers.clock.advance(1)
    callers.until(["large"])
    assert not bucket.consume(1)
    callers.clock.advance(1)
    assert bucket.consume(1)


@each_kind
def test_a_caller_that_would_wait_beyond_its_timeout_is_refused_at_once_and_spends_nothing(kind, callers):
    bucket = callers.bucket(kind, 2, 1)
    assert not bucket.consume(1, block=True, timeout=0.999999)
    assert not bucket.consume(1, block=True, timeout=0)
    callers.add("in time", 1, timeout=1)
    assert not bucket.consume(1, block=True, timeout=1.5)  # 2 s behind the other caller
    callers.clock.advance(1)
    callers.until(["in time"])
    callers.clock.advance(2)
    assert bucket.tokens == 2


@each_kind
def test_an_interrupted_caller_leaves_the_queue(kind):
    bucket = kind(2, 1, initial_tokens=0, clock=InterruptedClock())
    with pytest.raises(KeyboardInterrupt):
        bucket.consume(2, block=True)
    assert bucket.wait_time(1) == 1


@each_kind
def test_a_refund_lets_waiting_callers_move_up(kind, callers):
    bucket = callers.bucket(kind, 3, 1)
    callers.add("first", 2)
    callers.add("second", 2)
    bucket.refund(2)
    callers.until(["first"], 2)
    assert bucket.wait_time(1) == 3
    bucket.refund(2)
    callers.until(["first", "second"])
    assert bucket.tokens == pytest.approx(0)


@each_kind
def test_callers_who_all_wake_late_do_not_burst_past_the_limit(kind, callers):
    bucket = callers.bucket(kind, 2, 1)
    for name in range(5):
        callers.add(name)
    callers.clock.advance(60)  # the machine slept for a minute: the bucket refilled to 2 tokens, not 5
    until(lambda: len(callers.served) == 2)
    callers.until(callers.served[:2], 61, 62, 63)
    assert bucket.wait_time(0.5) == pytest.approx(3.5)
    for served, later in [(3, (62, 63)), (4, (63,)), (5, ())]:
        callers.clock.advance(1)
        until(lambda served=served: len(callers.served) == served)
        callers.until(callers.served[:served], *later)
    assert callers.served[2:] == [2, 3, 4]


@each_kind
@pytest.mark.parametrize("method", ["consume", "try_consume", "wait_time", "refund"])
@pytest.mark.parametrize("cost", NO_COST)
def test_a_cost_that_is_not_a_number_of_tokens_is_named(kind, method, cost):
    with pytest.raises(ConfigError, match="tokens is") as raised:
        getattr(kind(5, 1), method)(cost)
    assert raised.value.value is cost


@raising_kinds
def test_a_cost_above_the_capacity_is_an_error_and_not_an_endless_wait(kind, block):
    bucket = kind(5, 1, name="mail")
    with pytest.raises(CostExceedsCapacity, match="mail: 6 token"):
        bucket.consume(6, block=block)
    assert bucket.tokens == 5


@raising_kinds
def test_the_default_cost_can_be_above_the_capacity_too(kind, block):
    bucket = kind(0.5, 1, name="mail")
    with pytest.raises(CostExceedsCapacity, match="mail: 1 token"):
        bucket.consume(block=block)
    assert bucket.consume(0.5)


@each_kind
@pytest.mark.parametrize("timeout", [-1, math.nan, "1", True])
def test_a_timeout_that_is_not_a_number_of_seconds_is_named(kind, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        kind(5, 1).consume(block=True, timeout=timeout)


@each_kind
def test_a_timeout_without_block_is_an_error(kind):
    with pytest.raises(ConfigError, match="timeout is 1, expected None unless block=True"):
        kind(5, 1).consume(timeout=1)


@each_kind
@pytest.mark.parametrize(
    ("entry", "value"), [("capacity", 0), ("fill_rate", "1"), ("initial_tokens", 6), ("initial_tokens", -1)]
)
def test_a_bucket_with_invalid_arguments_is_never_created(kind, entry, value):
    with pytest.raises(ConfigError, match=entry):
        kind(**{"capacity": 5, "fill_rate": 1, entry: value})


def test_a_reservation_waits_in_the_queue_like_a_caller():
    clock = FakeClock()
    bucket = TokenBucket(2, 1, clock=clock)
    now, later, last = bucket.reserve(2), bucket.reserve(1), bucket.reserve(2)
    assert (now.ready, now.wait, later.wait, last.wait) == (True, 0, 1, 3)
    assert not bucket.consume()
    assert bucket.wait_time(1) == 4
    clock.advance(1)
    assert (later.ready, last.wait) == (True, 2)


def test_a_cancelled_reservation_lets_the_ones_behind_it_move_up():
    clock = FakeClock()
    bucket = TokenBucket(2, 1, 0, clock=clock)
    first, second, third = bucket.reserve(2), bucket.reserve(2), bucket.reserve(1)
    assert second.cancel()
    assert (first.wait, third.wait, second.wait, second.ready) == (2, 3, math.inf, False)
    assert not second.cancel()
    assert bucket.wait_time(1) == 4


def test_a_reservation_that_is_ready_is_spent_and_cannot_be_cancelled():
    clock = FakeClock()
    bucket = TokenBucket(2, 1, clock=clock)
    reservation = bucket.reserve(2)
    assert not reservation.cancel()
    assert (bucket.tokens, reservation.ready) == (0, True)


def test_a_reservation_keeps_its_grant_time_without_being_polled():
    clock = FakeClock()
    bucket = TokenBucket(1, 1, 0, clock=clock)
    reservations = [bucket.reserve() for _ in range(3)]
    clock.advance(3)
    assert [each.ready for each in reservations] == [True] * 3
    assert bucket.wait_time(1) == 1
    with pytest.raises(CostExceedsCapacity):
        bucket.reserve(2)


def test_a_cancelled_reservation_wakes_a_blocked_thread(callers):
    bucket = callers.bucket(TokenBucket, 2, 1)
    reservation = bucket.reserve(2)
    callers.pool.submit(callers._run, "thread", (), {})
    callers.until([], 3)
    reservation.cancel()
    callers.until([], 1)
    callers.clock.advance(1)
    callers.until(["thread"])


def test_a_timeout_also_ends_a_wait_that_grew_meanwhile(callers):
    bucket = callers.bucket(TokenBucket, 1, 1)
    callers.add("first")
    late = callers.add("second", timeout=2)
    callers.clock.advance(1.5)  # half a second late, so the second caller would be served at 2.5 s
    callers.until(["first"], 2)
    callers.clock.advance(0.5)
    assert late.result(timeout=30) is False
    callers.clock.advance(0.5)
    assert bucket.tokens == 1


@each_kind
def test_the_system_clock_serves_threads(kind):
    bucket = kind(1, 1000, initial_tokens=0)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: bucket.consume(block=True, timeout=60), range(20)))
