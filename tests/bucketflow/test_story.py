"""The behaviour of a token bucket as a table, run against every bucket class."""

from __future__ import annotations

import pytest

STORY = [  # capacity 3, 10 tokens/s; times in ms
    # at, cost, allowed, left, retry_after
    (0, 2, True, 1, 0),  # starts full
    (0, 2, False, 1, 100),  # a refusal spends nothing
    (0, 0, True, 1, 0),  # a cost of 0 takes nothing
    (100, 2, True, 0, 0),
    (50, 1, False, 0, 150),  # clock stepped back: the wait counts from now
    (100, 1, False, 0, 100),  # and no tokens were earned
    (199.999, 1, False, 1, 0.001),  # 1 µs early is early
    (200, 1, True, 0, 0),
    (250, 0.5, True, 0, 0),  # a cost can be a fraction
    (10_000, 3, True, 0, 0),  # idle past full: capped
    (10_300, 3, True, 0, 0),
    (10_300, 3, False, 0, 300),
]


def test_the_story_holds_for_every_bucket(make):
    bucket = make(capacity=3, fill_rate=10)
    for at, cost, allowed, left, retry_after in STORY:
        bucket.at(at / 1000)
        decision = bucket.consume(cost)
        assert decision.allowed is allowed, (at, cost)
        assert decision.tokens == (pytest.approx(left, abs=1e-4),), (at, cost)
        assert decision.retry_after == pytest.approx(retry_after / 1000, abs=1e-9), (at, cost)
        assert decision.binding == (None if allowed else 0), (at, cost)


def test_a_bucket_starts_with_its_initial_tokens(make):
    bucket = make(3, 10, 1)
    assert bucket.tokens() == 1
    assert bucket.consume(2).retry_after == 0.1
    bucket.at(0.1)
    assert bucket.consume(2).allowed


def test_a_bucket_that_starts_empty_fills_to_its_capacity_and_no_further(make):
    bucket = make(3, 10, 0)
    assert bucket.tokens() == 0
    for at, tokens in [(0.05, 0.5), (0.3, 3), (60, 3)]:
        bucket.at(at)
        assert bucket.tokens() == pytest.approx(tokens)


def test_a_refund_never_exceeds_the_capacity(make):
    bucket = make(3, 10)
    bucket.consume(2)
    bucket.refund(1)
    assert bucket.tokens() == pytest.approx(2)
    bucket.refund(3)
    assert bucket.tokens() == 3
    assert not make(3, 10, 0).consume(1).allowed
