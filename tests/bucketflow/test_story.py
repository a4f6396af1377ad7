"""One story, told to every shell: what a token bucket does, row by row."""

from __future__ import annotations

import pytest

STORY = [  # capacity 3, 10 tokens/s; times in ms
    # at, cost, allowed, left, retry_after
    (0, 2, True, 1, 0),  # starts full
    (0, 2, False, 1, 100),  # a refusal spends nothing
    (0, 0, True, 1, 0),  # a look
    (100, 2, True, 0, 0),
    (50, 1, False, 0, 150),  # clock stepped back: the wait counts from now
    (100, 1, False, 0, 100),  # and has earned nothing
    (199.999, 1, False, 1, 0.001),  # 1 µs early is early
    (200, 1, True, 0, 0),
    (250, 0.5, True, 0, 0),  # half a token is a cost too
    (10_000, 3, True, 0, 0),  # idle past full: capped
    (10_300, 3, True, 0, 0),
    (10_300, 3, False, 0, 300),
]


def test_the_story(make):
    shell = make(capacity=3, fill_rate=10)
    for at, cost, allowed, left, retry_after in STORY:
        shell.at(at / 1000)
        decision = shell.consume(cost)
        assert decision.allowed is allowed, (at, cost)
        assert decision.tokens == (pytest.approx(left, abs=1e-4),), (at, cost)
        assert decision.retry_after == pytest.approx(retry_after / 1000, abs=1e-9), (at, cost)
        assert decision.binding == (None if allowed else 0), (at, cost)


def test_initial_tokens_are_what_is_there_at_the_start(make):
    shell = make(3, 10, 1)
    assert shell.tokens() == 1
    assert shell.consume(2).retry_after == 0.1
    shell.at(0.1)
    assert shell.consume(2).allowed


def test_an_empty_start_fills_up_to_the_capacity_and_no_further(make):
    shell = make(3, 10, 0)
    assert shell.tokens() == 0
    for at, tokens in [(0.05, 0.5), (0.3, 3), (60, 3)]:
        shell.at(at)
        assert shell.tokens() == pytest.approx(tokens)


def test_a_refund_never_exceeds_the_capacity(make):
    shell = make(3, 10)
    shell.consume(2)
    shell.refund(1)
    assert shell.tokens() == pytest.approx(2)
    shell.refund(3)
    assert shell.tokens() == 3
    assert not make(3, 10, 0).consume(1).allowed
