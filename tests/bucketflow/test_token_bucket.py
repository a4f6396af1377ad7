"""What threads may rely on: never more than the limit, in order, nothing spent in vain."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
from waiting import Queue, until

from bucketflow import ConfigError, CostExceedsCapacity, HierarchicalTokenBucket, TokenBucket
from bucketflow.testing import FakeClock

NO_COST = [-1, -0.5, math.nan, math.inf, True, False, "1", None, Decimal(1), [1]]
KINDS = [TokenBucket, HierarchicalTokenBucket]

each_kind = pytest.mark.parametrize("kind", KINDS)
#: A hierarchical bucket answers False to a cost above its capacity if the caller does not block.
raising_kinds = pytest.mark.parametrize(
    ("kind", "block"), [(TokenBucket, False), (TokenBucket, True), (HierarchicalTokenBucket, True)]
)


class InterruptedClock(FakeClock):
    """Ctrl-C arrives while somebody sleeps."""

    def sleep(self, *_):
        raise KeyboardInterrupt


@pytest.fixture
def queue():
    """Return a queue of threads, see waiting.py."""
    with Queue() as queue:
        yield queue


@each_kind
@pytest.mark.usefixtures("often_switched")
def test_racing_threads_never_get_more_than_the_burst(kind):
    bucket = kind(500, 1, clock=FakeClock())
    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(lambda _: sum(bucket.consume() for _ in range(500)), range(8)))
    assert granted == 500
    assert bucket.tokens == 0


@each_kind
def test_a_blocked_caller_waits_exactly_as_long_as_it_must(kind):
    clock = FakeClock()
    bucket = kind(2, 4, clock=clock)
    assert all(bucket.consume(block=True) for _ in range(10))
    assert clock.now() == 2_000_000


@each_kind
def test_blocked_callers_are_served_in_the_order_in_which_they_came(kind, queue):
    bucket = queue.bucket(kind, 3, 1)
    for name, cost in [("first", 1), ("second", 3), ("third", 1), ("fourth", 2)]:
        queue.add(name, cost)
    queue.until([], 1, 4, 5, 7)
    queue.clock.advance(1)
    queue.until(["first"], 4, 5, 7)
    queue.clock.advance(3)
    queue.until(["first", "second"], 5, 7)
    queue.clock.advance(1)
    queue.until(["first", "second", "third"], 7)
    queue.clock.advance(2)
    queue.until(["first", "second", "third", "fourth"])
    assert bucket.tokens == pytest.approx(0)


@each_kind
def test_nobody_overtakes_those_who_wait(kind, queue):
    bucket = queue.bucket(kind, 5, 1)
    queue.add("large", 5)
    queue.clock.advance(4)
    assert bucket.tokens == pytest.approx(4)
    assert not bucket.consume(1)
    assert bucket.try_consume(1).retry_after == bucket.wait_time(1) == 2  # 1 s until the large one, 1 s more
    assert bucket.consume(0)
    queue.clock.advance(1)
    queue.until(["large"])
    assert not bucket.consume(1)
    queue.clock.advance(1)
    assert bucket.consume(1)


@each_kind
def test_who_would_wait_beyond_the_timeout_is_refused_at_once_and_has_spent_nothing(kind, queue):
    bucket = queue.bucket(kind, 2, 1)
    assert not bucket.consume(1, block=True, timeout=0.999999)
    assert not bucket.consume(1, block=True, timeout=0)
    queue.add("in time", 1, timeout=1)
    assert not bucket.consume(1, block=True, timeout=1.5)  # behind the other one it takes 2 s
    queue.clock.advance(1)
    queue.until(["in time"])
    queue.clock.advance(2)
    assert bucket.tokens == 2


@each_kind
def test_an_interrupted_caller_gives_its_place_back(kind):
    bucket = kind(2, 1, initial_tokens=0, clock=InterruptedClock())
    with pytest.raises(KeyboardInterrupt):
        bucket.consume(2, block=True)
    assert bucket.wait_time(1) == 1


@each_kind
def test_a_refund_lets_those_who_wait_go_sooner(kind, queue):
    bucket = queue.bucket(kind, 3, 1)
    queue.add("first", 2)
    queue.add("second", 2)
    bucket.refund(2)
    queue.until(["first"], 2)
    assert bucket.wait_time(1) == 3
    bucket.refund(2)
    queue.until(["first", "second"])
    assert bucket.tokens == pytest.approx(0)


@each_kind
def test_callers_who_all_wake_late_do_not_burst_past_the_limit(kind, queue):
    bucket = queue.bucket(kind, 2, 1)
    for name in range(5):
        queue.add(name)
    queue.clock.advance(60)  # the machine slept for a minute: a full bucket came together, not five tokens
    until(lambda: len(queue.served) == 2)
    queue.until(queue.served[:2], 61, 62, 63)
    assert bucket.wait_time(0.5) == pytest.approx(3.5)
    for served, later in [(3, (62, 63)), (4, (63,)), (5, ())]:
        queue.clock.advance(1)
        until(lambda served=served: len(queue.served) == served)
        queue.until(queue.served[:served], *later)
    assert queue.served[2:] == [2, 3, 4]


@each_kind
@pytest.mark.parametrize("verb", ["consume", "try_consume", "wait_time", "refund"])
@pytest.mark.parametrize("cost", NO_COST)
def test_a_cost_that_is_no_number_of_tokens_is_named(kind, verb, cost):
    with pytest.raises(ConfigError, match="tokens is") as raised:
        getattr(kind(5, 1), verb)(cost)
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
def test_a_timeout_that_is_no_time_is_named(kind, timeout):
    with pytest.raises(ConfigError, match="timeout"):
        kind(5, 1).consume(block=True, timeout=timeout)


@each_kind
def test_a_timeout_without_block_is_a_mistake(kind):
    with pytest.raises(ConfigError, match="timeout is 1, expected None unless block=True"):
        kind(5, 1).consume(timeout=1)


@each_kind
@pytest.mark.parametrize(
    ("entry", "value"), [("capacity", 0), ("fill_rate", "1"), ("initial_tokens", 6), ("initial_tokens", -1)]
)
def test_a_bucket_that_cannot_work_is_never_made(kind, entry, value):
    with pytest.raises(ConfigError, match=entry):
        kind(**{"capacity": 5, "fill_rate": 1, entry: value})


def test_a_reservation_takes_its_place_in_the_line():
    clock = FakeClock()
    bucket = TokenBucket(2, 1, clock=clock)
    now, later, last = bucket.reserve(2), bucket.reserve(1), bucket.reserve(2)
    assert (now.ready, now.wait, later.wait, last.wait) == (True, 0, 1, 3)
    assert not bucket.consume()
    assert bucket.wait_time(1) == 4
    clock.advance(1)
    assert (later.ready, last.wait) == (True, 2)


def test_a_cancelled_reservation_lets_those_behind_it_move_up():
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


def test_a_reservation_holds_its_instant_though_nobody_looked_at_it():
    clock = FakeClock()
    bucket = TokenBucket(1, 1, 0, clock=clock)
    reservations = [bucket.reserve() for _ in range(3)]
    clock.advance(3)
    assert [each.ready for each in reservations] == [True] * 3
    assert bucket.wait_time(1) == 1
    with pytest.raises(CostExceedsCapacity):
        bucket.reserve(2)


def test_a_cancelled_reservation_wakes_a_blocked_thread(queue):
    bucket = queue.bucket(TokenBucket, 2, 1)
    reservation = bucket.reserve(2)
    queue.pool.submit(queue._run, "thread", (), {})
    queue.until([], 3)
    reservation.cancel()
    queue.until([], 1)
    queue.clock.advance(1)
    queue.until(["thread"])


def test_a_timeout_also_ends_a_wait_that_grew_meanwhile(queue):
    bucket = queue.bucket(TokenBucket, 1, 1)
    queue.add("first")
    late = queue.add("second", timeout=2)
    queue.clock.advance(1.5)  # half a second late, so the second one would be served at 2.5 s
    queue.until(["first"], 2)
    queue.clock.advance(0.5)
    assert late.result(timeout=30) is False
    queue.clock.advance(0.5)
    assert bucket.tokens == 1


@each_kind
def test_the_machines_own_clock_serves_threads_too(kind):
    bucket = kind(1, 1000, initial_tokens=0)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: bucket.consume(block=True, timeout=60), range(20)))
