"""Whatever those in a line do, each is served in order, at its instant, and nobody beyond the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow import Limit
from bucketflow.algorithm.wait_queue import Claim, Line

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
    claims = [Claim(cost, str) for cost in costs]
    for claim in claims:
        line.join(claim, now)
    return claims


@given(limits, steps)
def test_no_window_is_ever_above_the_limit_and_nobody_is_served_out_of_order(limit, steps):
    line, now, joined, taken = Line(limit), 10_000_000, [], []
    for step, value in steps:
        if step == "join":
            claim = Claim(value * limit.capacity, str)
            joined.append(claim)
            line.join(claim, now)
        elif step == "leave" and line.claims:
            place = value % len(line.claims)
            before = {claim: claim.at for claim in line.claims}
            joined.remove(line.claims[place])
            nearer = line.abandon(line.claims[place], now)
            assert nearer == [claim for claim in line.claims if claim.at < before[claim]]
            assert all(claim.at <= before[claim] + 1 for claim in line.claims)
        elif step == "consume":
            waiting = bool(line.claims) and line.claims[0].at > now
            if line.consume(now, value * limit.capacity):
                assert not waiting
                taken.append((now, value * limit.capacity))
        else:
            now = max(0, now + (value if step == "pass" else -value))
        line.settle(now)
        granted = [claim for claim in joined if claim.granted]
        assert granted == joined[: len(granted)]
        taken += [(now, claim.cost) for claim in granted]
        joined = joined[len(granted) :]
        assert [claim.at for claim in joined] == sorted(claim.at for claim in joined)
    for first, (start, _) in enumerate(taken):
        end, total = start, 0.0
        for at, cost in taken[first:]:
            end, total = max(end, at), total + cost
            assert total <= limit.capacity + limit.fill_rate * (end - start + 1) / 1e6 + 1e-6


@given(limits, st.lists(shares, max_size=10), shares)
def test_a_newcomers_wait_is_the_one_it_gets(limit, ahead, share):
    line = Line(limit)
    claims_of(line, 0, *(cost * limit.capacity for cost in ahead))
    wait = line.wait(0, share * limit.capacity)
    (claim,) = claims_of(line, 0, share * limit.capacity)
    assert claim.at == wait
    for at in sorted({each.at for each in line.claims}):
        line.settle(at - 1)
        assert not claim.granted
        line.settle(at)
    assert claim.granted


def test_when_one_leaves_those_behind_move_up_and_a_newcomer_stays_behind_them():
    line = Line(Limit(2, 1), full_at=2_000_000)
    first, second, third, fourth = claims_of(line, 0, 1, 2, 1, 2)
    assert [claim.at for claim in line.claims] == [1_000_000, 3_000_000, 4_000_000, 6_000_000]
    assert line.abandon(second, 0) == [third, fourth]
    assert [claim.at for claim in (first, third, fourth)] == [1_000_000, 2_000_000, 4_000_000]
    assert line.wait(0, 1) == 5_000_000
    assert line.abandon(second, 0) == []


def test_tokens_of_a_granted_claim_go_back_when_its_owner_will_not_act():
    line = Line(Limit(2, 1))
    (claim,) = claims_of(line, 0, 2)
    assert claim.granted
    assert line.tokens(0) == 0
    line.abandon(claim, 0)
    assert line.tokens(0) == 2


@pytest.mark.parametrize(("promised", "instants"), [(True, [1, 2, 3]), (False, [1, 10, 11])])
def test_a_promise_counts_from_its_instant_and_a_sleeper_from_when_it_was_seen(promised, instants):
    line = Line(Limit(1, 1), full_at=1_000_000)
    claims = [Claim(1, str, promised=promised) for _ in instants]
    for claim in claims:
        line.join(claim, 0)
    line.settle(1_000_000)
    assert [claim.granted for claim in claims] == [True, False, False]
    line.settle(9_999_999 if promised else 10_000_000)
    assert [claim.granted for claim in claims] == [True, True, promised]
    assert claims[-1].at == instants[-1] * 1_000_000
