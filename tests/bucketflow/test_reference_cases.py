"""Cases from the tests of established limiters in other languages, run against every bucket class."""

from __future__ import annotations

import math

import pytest

from bucketflow import ConfigError, CostExceedsCapacity, HierarchicalTokenBucket, Limit
from bucketflow.algorithm import gcra
from bucketflow.testing import FakeClock

THROTTLED = [  # throttled (Go) rate_test.go = redis-cell src/cell/mod.rs: 1 token/s, capacity 5
    # time, cost, left (whole tokens), seconds until full, retry_after
    (0, 1, 4, 1, 0),
    (0, 1, 3, 2, 0),
    (0, 1, 2, 3, 0),
    (0, 1, 1, 4, 0),
    (0, 1, 0, 5, 0),
    (0, 1, 0, 5, 1),
    (3.0, 1, 2, 3.0, 0),
    (3.1, 1, 1, 3.9, 0),
    (4.0, 1, 1, 4.0, 0),
    (8.0, 1, 4, 1, 0),
    (9.5, 1, 4, 1, 0),
    (9.5, 0, 4, 1, 0),
    (9.5, 2, 2, 3, 0),
    (9.5, 5, 2, 3, 3),
]

REDIS_RATE = [  # redis_rate rate_test.go: 10 tokens/s, capacity 10
    (0, 1, 9, 0.1, 0),
    (0, 2, 7, 0.3, 0),
    (0, 7, 0, 1.0, 0),
    (0, 1, 0, 1.0, 0.1),
]

GUBERNATOR = [  # functional_test.go: limit 2000, here per day: cost, allowed, left
    (1000, True, 1000),
    (1500, False, 1000),
    (500, True, 500),
    (400, True, 100),
    (100, True, 0),
    (1, False, 0),
]

BUCKET4J = [  # BucketStateSpecification, its ns read as s: capacity, fill, period, tokens, cost, wait
    (10, 10, 100, 0, 10, 100),
    (10, 2, 100, 0, 10, 500),
    (10, 10, 100, 4, 7, 30),
    (100, 100, 100, 70, 80, 10),
]


@pytest.mark.parametrize(("capacity", "fill_rate", "rows"), [(5, 1, THROTTLED), (10, 10, REDIS_RATE)])
def test_throttled_and_redis_rate_decisions(make, capacity, fill_rate, rows):
    bucket = make(capacity, fill_rate)
    for time, cost, left, until_full, retry_after in rows:
        bucket.at(time)
        decision = bucket.consume(cost)
        assert decision.allowed is (retry_after == 0), (time, cost)
        assert decision.retry_after == pytest.approx(retry_after), (time, cost)
        assert math.floor(decision.tokens[0] + 1e-9) == left, (time, cost)
        assert (capacity - decision.tokens[0]) / fill_rate == pytest.approx(until_full), (time, cost)


def test_throttled_can_never_grant_more_than_the_capacity(make):
    bucket = make(5, 1)
    with pytest.raises(CostExceedsCapacity):
        bucket.consume(6)
    assert bucket.tokens() == 5


def test_redis_rate_an_empty_bucket_has_no_tokens(make):
    assert math.floor(make(10, 10, 0).tokens()) == 0


@pytest.mark.parametrize("row", BUCKET4J)
def test_bucket4j_wait_times(make, row):
    capacity, fill, period, tokens, cost, wait = row
    bucket = make(capacity, fill / period, tokens)
    assert bucket.consume(cost).retry_after == pytest.approx(wait)
    bucket.at(wait)
    assert bucket.consume(cost).allowed


def test_bucket4j_can_never_grant_more_than_the_capacity(make):
    with pytest.raises(CostExceedsCapacity):
        make(100, 1, 70).consume(120)


TWO_LEVELS = [(Limit(10, 0.1), 1), (Limit(5, 0.5), 2)]  # limit, tokens


@pytest.mark.parametrize(("levels", "binding"), [(TWO_LEVELS, 0), (TWO_LEVELS[::-1], 1)])
def test_bucket4j_the_longest_wait_of_two_levels_counts_in_either_order(levels, binding):
    states = [gcra.take(limit, gcra.FULL, 0, limit.capacity - tokens) for limit, tokens in levels]
    decision, after = gcra.consume_path([limit for limit, _ in levels], states, 0, 3)
    assert (decision.retry_after, decision.binding) == (20, binding)
    assert list(after) == states

    bucket = None
    for limit, tokens in levels:
        clock = None if bucket else FakeClock()
        bucket = HierarchicalTokenBucket(limit.capacity, limit.fill_rate, bucket, tokens, clock=clock)
    assert bucket.try_consume(3) == decision


def test_gubernator_drains_a_bucket_to_zero(make):
    bucket = make(2000, 2000 / 86_400)
    for cost, allowed, left in GUBERNATOR:
        decision = bucket.consume(cost)
        assert (decision.allowed, decision.tokens[0]) == (allowed, pytest.approx(left, abs=1e-6)), cost


def test_gubernator_a_refund_stops_at_the_capacity(make):
    bucket = make(2, 1)
    bucket.refund(1)
    assert bucket.tokens() == 2


def test_sidekiq_throttled_five_in_ten_seconds_refill_one_by_one(make):
    bucket = make(5, 0.5)
    assert bucket.consume(5).allowed
    assert bucket.consume().retry_after == 2


@pytest.mark.parametrize("value", [0, -1])
def test_sidekiq_throttled_a_limit_of_zero_or_less_is_an_error(make, value):
    with pytest.raises(ConfigError, match="capacity"):
        make(value, 1)
    with pytest.raises(ConfigError, match="fill_rate"):
        make(1, value)
