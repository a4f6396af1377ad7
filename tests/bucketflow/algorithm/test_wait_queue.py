"""Whatever those in a line do, each is served in order, at its instant, and nobody beyond the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow import Limit
from bucketflow.algorithm.wait_queue import Waiter, WaitQueue

limits = st.builds(Limit, st.integers(1, 20), st.integers(1, 50))
shares = st.floats(0.01, 1)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("join"), shares),
        st.tuples(st.just("leave"), st.integers(0, 20)),
        st.tuples(st.just("consume"), shares),
        st.tuples(st.just("pass"), st.integers(0, 2_000_000)),
        st.tuples(st.just("step back"), st.integers(0, 1_000_000)),
    ),
    max_size=40,
)


def claims_of(line, now, *costs):
    waiters = [Waiter(cost, str) for cost in costs]
    for waiter in waiters:
        line.join(waiter, now)
    return waiters


@given(limits, steps)
def test_no_window_is_ever_above_the_limit_and_nobody_is_served_out_of_order(limit, steps):
    line, now, joined, taken = WaitQueue(limit), 10_000_000, [], []
    for step, value in steps:
        if step == "join":
            waiter = Waiter(value * limit.capacity, str)
            joined.append(waiter)
            line.join(waiter, now)
        elif step == "leave" and line.waiters:
            place = value % len(line.waiters)
            before = {waiter: waiter.at for waiter in line.waiters}
            joined.remove(line.waiters[place])
            nearer = line.cancel(line.waiters[place], now)
            assert nearer == [waiter for waiter in line.waiters if waiter.at < before[waiter]]
            assert all(waiter.at <= before[waiter] + 1 for waiter in line.waiters)
        elif step == "consume":
            waiting = bool(line.waiters) and line.waiters[0].at > now
            if line.consume(now, value * limit.capacity):
                assert not waiting
                taken.append((now, value * limit.capacity))
        else:
            now = max(0, now + (value if step == "pass" else -value))
        line.grant_due(now)
        granted = [waiter for waiter in joined if waiter.granted]
        assert granted == joined[: len(granted)]
        taken += [(now, waiter.cost) for waiter in granted]
        joined = joined[len(granted) :]
        assert [waiter.at for waiter in joined] == sorted(waiter.at for waiter in joined)
    for first, (start, _) in enumerate(taken):
        end, total = start, 0.0
        for at, cost in taken[first:]:
            end, total = max(end, at), total + cost
            assert total <= limit.capacity + limit.fill_rate * (end - start + 1) / 1e6 + 1e-6


@given(limits, st.lists(shares, max_size=10), shares)
def test_a_newcomers_wait_is_the_one_it_gets(limit, ahead, share):
    line = WaitQueue(limit)
    claims_of(line, 0, *(cost * limit.capacity for cost in ahead))
    wait = line.wait(0, share * limit.capacity)
    (waiter,) = claims_of(line, 0, share * limit.capacity)
    assert waiter.at == wait
    for at in sorted({each.at for each in line.waiters}):
        line.grant_due(at - 1)
        assert not waiter.granted
        line.grant_due(at)
    assert waiter.granted


def test_when_one_leaves_those_behind_move_up_and_a_newcomer_stays_behind_them():
    line = WaitQueue(Limit(2, 1), full_at=2_000_000)
    first, second, third, fourth = claims_of(line, 0, 1, 2, 1, 2)
    assert [waiter.at for waiter in line.waiters] == [1_000_000, 3_000_000, 4_000_000, 6_000_000]
    assert line.cancel(second, 0) == [third, fourth]
    assert [waiter.at for waiter in (first, third, fourth)] == [1_000_000, 2_000_000, 4_000_000]
    assert line.wait(0, 1) == 5_000_000
    assert line.cancel(second, 0) == []


def test_tokens_of_a_granted_claim_go_back_when_its_owner_will_not_act():
    line = WaitQueue(Limit(2, 1))
    (waiter,) = claims_of(line, 0, 2)
    assert waiter.granted
    assert line.tokens(0) == 0
    line.cancel(waiter, 0)
    assert line.tokens(0) == 2


@pytest.mark.parametrize(("promised", "instants"), [(True, [1, 2, 3]), (False, [1, 10, 11])])
def test_a_promise_counts_from_its_instant_and_a_sleeper_from_when_it_was_seen(promised, instants):
    line = WaitQueue(Limit(1, 1), full_at=1_000_000)
    waiters = [Waiter(1, str, promised=promised) for _ in instants]
    for waiter in waiters:
        line.join(waiter, 0)
    line.grant_due(1_000_000)
    assert [waiter.granted for waiter in waiters] == [True, False, False]
    line.grant_due(9_999_999 if promised else 10_000_000)
    assert [waiter.granted for waiter in waiters] == [True, True, promised]
    assert waiters[-1].at == instants[-1] * 1_000_000
