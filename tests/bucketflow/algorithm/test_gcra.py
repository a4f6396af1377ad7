"""The promises of the GCRA arithmetic, for any limit and history, and for every bucket class that implements it."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bucketflow import CostExceedsCapacity, Limit
from bucketflow.algorithm import gcra

TICK = 1e-6

capacities = st.one_of(st.integers(1, 1000), st.floats(0.1, 1e5))
fill_rates = st.one_of(st.integers(1, 1000), st.floats(1e-3, 1e5))
limits = st.builds(Limit, capacities, fill_rates)
shares = st.floats(0, 1)  # of the capacity
gaps = st.one_of(  # seconds
    st.just(0.0), st.floats(0, 1e-4), st.floats(0, 10), st.floats(0, 1e6), st.floats(-10, 0)
)
histories = st.lists(st.tuples(gaps, shares), max_size=30)
#: Costs of 0 or above the resolution of the clock. A smaller one leaves a full bucket, for which Redis has no key.
slow_limits = st.builds(Limit, capacities, st.floats(1e-3, 1000))
noticeable = st.lists(st.tuples(gaps, st.just(0.0) | st.floats(0.05, 1)), max_size=30)
every_adapter = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def buckets(draw, limit=limits):
    """Draw a limit, a bucket of it in any state, and an instant; the clock may have stepped back."""
    limit = draw(limit)
    now = draw(st.integers(0, 10**15))
    full_at = now + draw(st.floats(-2, 1)) * limit.span + draw(st.sampled_from([0, 0, 5e6]))
    return limit, max(0.0, full_at), now


@pytest.mark.parametrize("deepest", [1, 3])
@given(data=st.data())
@settings(deadline=None)
def test_a_window_never_admits_more_than_capacity_and_refill(deepest, data):
    path = data.draw(st.lists(limits, min_size=1, max_size=deepest))
    most = min(limit.capacity for limit in path)
    states, now, admitted = [gcra.FULL] * len(path), 0, []
    for gap, share in data.draw(histories):
        now = max(0, now + round(gap / TICK))
        decision, states = gcra.consume_path(path, states, now, share * most)
        if decision.allowed and share:  # a cost of 0 stores nothing, so the bucket does not learn the time
            admitted.append((now, share * most))
    for limit in path:
        for first, (start, _) in enumerate(admitted):
            # Windows end at the latest time so far, because the time before a step back counts once.
            end, total = start, 0.0
            for at, cost in admitted[first:]:
                end, total = max(end, at), total + cost
                assert total <= (limit.capacity + limit.fill_rate * (end - start + 1) * TICK) * (1 + 1e-9)


@every_adapter
@given(limit=slow_limits, steps=noticeable)
def test_every_adapter_gives_the_decisions_of_gcra(make_exact, limit, steps):
    bucket, full_at, now = make_exact(limit.capacity, limit.fill_rate), gcra.FULL, 0
    for gap, share in steps:
        now = max(0, now + round(gap / TICK))
        bucket.at(now * TICK)
        decision, full_at = gcra.consume(limit, full_at, now, share * limit.capacity)
        assert bucket.consume(share * limit.capacity) == decision
        assert bucket.tokens() == gcra.tokens_at(limit, full_at, now)


@every_adapter
@given(
    limit=slow_limits.filter(lambda limit: limit.capacity >= 1),
    steps=st.lists(st.tuples(gaps, st.sampled_from([1, 1, 1, 1.0, 0])), max_size=30),
)
def test_every_adapter_gives_the_decisions_of_gcra_for_the_default_cost(make_exact, limit, steps):
    bucket, full_at, now = make_exact(limit.capacity, limit.fill_rate), gcra.FULL, 0
    for gap, cost in steps:
        now = max(0, now + round(gap / TICK))
        bucket.at(now * TICK)
        decision, full_at = gcra.consume(limit, full_at, now, cost)
        assert bucket.consume(cost) == decision
        assert bucket.tokens() == gcra.tokens_at(limit, full_at, now)


@given(limits | st.builds(Limit, st.floats(1e-9, 1), st.floats(1e3, 1e12)))
def test_the_burst_tolerance_is_exact_to_the_last_bit(limit):
    tolerance = gcra.burst_tolerance(limit)
    assert gcra.wait_for(limit, tolerance, 0, 0) == 0
    assert gcra.wait_for(limit, math.nextafter(tolerance, math.inf), 0, 0) == 1


@given(buckets(), shares, st.data())
def test_retry_after_is_refused_at_every_instant_before_and_granted_exactly_at_it(bucket, share, data):
    limit, full_at, now = bucket
    cost = share * limit.capacity
    wait = gcra.wait_for(limit, full_at, now, cost)
    # If the exact wait ends on half a µs, the last bit of a double decides how it is rounded.
    exact = full_at - now + cost / limit.fill_rate / TICK - limit.span
    assume(abs(exact % 1 - 0.5) > 1e-3)
    assert gcra.consume(limit, full_at, now + wait, cost)[0].allowed
    if wait:
        early = data.draw(st.sampled_from([1, wait]) | st.integers(1, wait))
        refused, _ = gcra.consume(limit, full_at, now + wait - early, cost)
        assert (refused.allowed, refused.binding) == (False, 0)
        assert round(refused.retry_after / TICK) == early


@given(buckets(), shares)
def test_a_refusal_changes_nothing(bucket, share):
    limit, full_at, now = bucket
    decision, after = gcra.consume(limit, full_at, now, share * limit.capacity)
    assert decision.allowed or after == full_at


@given(st.lists(buckets(), min_size=1, max_size=4), shares)
def test_a_path_is_all_or_nothing(levels, share):
    path, states = [limit for limit, _, _ in levels], [full_at for _, full_at, _ in levels]
    now = levels[0][2]
    cost = share * min(limit.capacity for limit in path)
    alone = [gcra.consume(limit, full_at, now, cost) for limit, full_at in zip(path, states, strict=True)]
    decision, after = gcra.consume_path(path, states, now, cost)
    assert decision.allowed is all(each.allowed for each, _ in alone)
    assert list(after) == ([state for _, state in alone] if decision.allowed else states)
    waits = [each.retry_after for each, _ in alone]
    assert decision.retry_after == max(waits)
    assert decision.binding == (None if decision.allowed else waits.index(max(waits)))


@given(buckets(), shares)
def test_a_refund_returns_what_was_taken_and_never_exceeds_the_capacity(bucket, share):
    limit, full_at, now = bucket
    cost = share * limit.capacity
    assert gcra.tokens_at(limit, gcra.refund(limit, full_at, now, cost), now) <= limit.capacity
    decision, after = gcra.consume(limit, full_at, now, cost)
    assume(decision.allowed)
    before = gcra.tokens_at(limit, full_at, now)
    assert gcra.tokens_at(limit, gcra.refund(limit, after, now, cost), now) == pytest.approx(before, rel=1e-6, abs=1e-3)


@given(buckets(), st.integers(0, 10**9), shares)
def test_a_clock_that_steps_back_earns_nothing_and_never_raises(bucket, back, share):
    limit, full_at, now = bucket
    earlier = max(0, now - back)
    assert gcra.tokens_at(limit, full_at, earlier) <= gcra.tokens_at(limit, full_at, now)
    decision, after = gcra.consume(limit, full_at, earlier, share * limit.capacity)
    assert after >= full_at or (decision.allowed and full_at <= earlier)


@given(buckets())
def test_an_idle_bucket_refills_to_exactly_its_capacity(bucket):
    limit, full_at, now = bucket
    _, after = gcra.consume(limit, full_at, now, limit.capacity / 2)
    assert gcra.tokens_at(limit, after, now + round(2 * limit.span) + 10_000_000) == limit.capacity


def test_a_path_names_the_level_that_can_never_grant():
    with pytest.raises(CostExceedsCapacity, match="level 1: 3 token") as raised:
        gcra.consume_path([Limit(5, 1), Limit(2, 1)], [gcra.FULL] * 2, 0, 3)
    assert (raised.value.cost, raised.value.capacity) == (3, 2)


def test_a_path_and_its_states_must_have_the_same_length():
    with pytest.raises(ValueError, match="zip"):
        gcra.consume_path([Limit(5, 1)], [gcra.FULL] * 2, 0, 1)
