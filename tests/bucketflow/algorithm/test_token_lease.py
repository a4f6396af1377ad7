"""Token leases: whatever happens to their holders, the limit holds in every window."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shells import at_stopped_clock

from bucketflow import Limit
from bucketflow.algorithm import gcra, token_lease
from bucketflow.algorithm.mirror import CONSTANTS
from bucketflow.limit import SECOND
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import load_script
from bucketflow.testing import worst_excess

START = 10 * 365 * 86_400 * SECOND  # later than the state of any bucket

limits = st.builds(Limit, st.sampled_from([3, 10, 100]), st.sampled_from([0.5, 3, 50, 1000]))
gaps = st.floats(0, 1.5)  # of the time in which the bucket fills
STEPS = ("lease", "spend", "settle", "vanish", "consume", "refund")
steps = st.lists(st.tuples(st.sampled_from(STEPS), gaps, st.integers(0, 9), st.floats(0, 1)), max_size=60)
several = settings(max_examples=500, deadline=None)


class Fleet:
    """A bucket and the holders of its leases, as the scripts and the processes keep them."""

    def __init__(self, limit):
        self.limit, self.now = limit, START
        self.full_at, self.out = gcra.FULL, token_lease.NO_LEASES
        self.holders = []  # (lease, decays from)
        self.starts = []  # (seconds, cost)
        self.consumed = 0.0

    def step(self, kind, passed, holder, share):
        self.now += round(passed * self.limit.span * (0.1 if holder else 1))
        self.out = token_lease.outstanding_at(self.out, self.now)
        getattr(self, kind)(holder, share)

    def lease(self, _, share):
        tokens = token_lease.available_to_lease(self.limit, self.full_at, self.now, 1 + share * self.limit.capacity)
        if tokens > 0:
            decays_from, self.full_at, self.out = token_lease.lease(
                self.limit, self.full_at, self.out, self.now, tokens
            )
            self.holders.append((token_lease.TokenLease(tokens, [self.limit], [decays_from]), decays_from))

    def spend(self, holder, share):
        if self.holders:
            lease, _ = self.holders[holder % len(self.holders)]
            cost = share * lease.tokens
            if cost and lease.spend(self.now, cost):
                self.start(cost)

    def settle(self, holder, _):
        if self.holders:
            lease, decays_from = self.holders.pop(holder % len(self.holders))
            (unspent,) = lease.unspent(self.now)
            self.full_at, self.out = token_lease.settle(
                self.limit, self.full_at, self.out, self.now, lease.tokens, decays_from, unspent
            )

    def vanish(self, holder, _):
        if self.holders:
            self.holders.pop(holder % len(self.holders))

    def consume(self, _, share):
        decision, self.full_at = gcra.consume(self.limit, self.full_at, self.now, share * self.limit.capacity)
        if decision.allowed:
            self.consumed += share * self.limit.capacity
            self.start(share * self.limit.capacity)

    def refund(self, _, share):
        """Return tokens that were taken and not used."""
        cost = share * self.consumed
        self.consumed -= cost
        self.full_at = token_lease.refund(self.limit, self.full_at, self.out, self.now, cost)

    def start(self, cost):
        self.starts.append((self.now / SECOND - START / SECOND, cost))

    def total(self):
        held = sum(lease.unspent(self.now)[0] for lease, _ in self.holders)
        return gcra.tokens_at(self.limit, self.full_at, self.now) + held


def a_tick(limit):
    """Return the tokens of one µs, the resolution of the clock."""
    return limit.fill_rate / SECOND


@several
@given(limits, steps)
def test_bucket_and_leases_together_never_hold_more_than_the_capacity(limit, steps):
    fleet = Fleet(limit)
    for step in steps:
        fleet.step(*step)
        assert fleet.total() <= limit.capacity + a_tick(limit)


@several
@given(limits, steps)
def test_no_window_ever_exceeds_the_limit_whatever_the_holders_do(limit, steps):
    fleet = Fleet(limit)
    for step in steps:
        if step[0] != "refund":  # a refund cancels an earlier start, and this model does not know which
            fleet.step(*step)
    assert worst_excess(fleet.starts, limit) <= a_tick(limit)


@pytest.mark.parametrize(("order", "left"), [((2, 1, 0), 94), ((0, 0, 0), 94 - 2 * 28), ((1, 1, 0), 94 - 28)])
def test_leases_cost_what_was_spent_and_what_was_settled_under_a_later_lease(order, left):
    fleet = Fleet(Limit(100, 1))
    for _ in range(3):
        fleet.lease(0, 0.29)
    for lease, _ in fleet.holders:
        assert lease.tokens == pytest.approx(30)
        assert lease.spend(fleet.now, 2)
    for holder in order:
        fleet.settle(holder, 0)
    assert fleet.total() == pytest.approx(left)
    assert fleet.out == token_lease.NO_LEASES


@pytest.mark.parametrize("holders", [1, 2, 8])
def test_holders_below_the_limit_are_served_with_few_requests_whatever_their_number(holders):
    """Each holder takes one token at a time. Together they take 90 % of the fill rate."""
    limit = Limit(1000, 100)
    fleet, held, requests, refused = Fleet(limit), [None] * holders, 0, 0
    for number in range(20_000):
        fleet.now = START + round(number / 90 * SECOND)
        holder = number % holders
        if held[holder] is not None and held[holder][0].spend(fleet.now, 1):
            continue
        requests += 1
        fleet.out = token_lease.outstanding_at(fleet.out, fleet.now)
        if held[holder] is not None:
            fleet.holders.append(held[holder])
            fleet.settle(-1, 0)
        decision, fleet.full_at = gcra.consume(limit, fleet.full_at, fleet.now)
        refused += not decision.allowed
        fleet.lease(0, 0.099)
        held[holder] = fleet.holders.pop() if fleet.holders else None
    assert refused == 0
    assert requests <= 20_000 / 25


def test_settling_a_decayed_lease_leaves_later_leases_outstanding():
    fleet = Fleet(Limit(3, 1))
    fleet.lease(0, 0)
    fleet.now += 10 * SECOND
    fleet.out = token_lease.outstanding_at(fleet.out, fleet.now)
    fleet.lease(0, 0)
    fleet.settle(0, 0)
    assert fleet.out.tokens == 1
    fleet.refund(0, 0)
    assert fleet.total() == pytest.approx(3)


def test_a_lease_of_a_full_bucket_decays_as_the_bucket_refills():
    fleet = Fleet(Limit(100, 10))
    fleet.lease(0, 0.49)
    (lease, _) = fleet.holders[0]
    assert lease.tokens == 50
    fleet.now += 2 * SECOND
    assert not lease.spend(fleet.now, 31)
    assert lease.spend(fleet.now, 30)


def test_a_lease_decays_only_from_when_the_bucket_would_be_full_without_it():
    fleet = Fleet(Limit(100, 10))
    fleet.consume(0, 0.8)
    fleet.lease(0, 0.19)
    (lease, _) = fleet.holders[0]
    fleet.now += 8 * SECOND
    assert lease.unspent(fleet.now) == [20]
    fleet.now += SECOND
    assert lease.unspent(fleet.now) == [10]


def test_tokens_of_a_holder_that_died_are_back_once_they_have_decayed():
    fleet = Fleet(Limit(100, 10))
    fleet.lease(0, 0.99)
    fleet.vanish(0, 0)
    assert fleet.total() == 0
    fleet.now += 5 * SECOND
    assert fleet.total() == 50
    fleet.now += 5 * SECOND
    assert token_lease.outstanding_at(fleet.out, fleet.now) == token_lease.NO_LEASES
    assert fleet.total() == 100


def test_each_level_of_a_path_decays_at_its_own_rate():
    slow, fast = Limit(100, 1), Limit(100, 10)
    lease = token_lease.TokenLease(50, [slow, fast], [START, START])
    assert lease.unspent(START + 2 * SECOND) == [48, 30]
    assert lease.left == 30
    assert lease.spend(START + 2 * SECOND, 30)
    assert lease.unspent(START + 2 * SECOND) == [18, 0]


# The Lua script does the same arithmetic ------------------------------------------------------------------------------


def packed(numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpacked(reply):
    return list(struct.unpack(f"<{len(reply) // 8}d", reply))


class Twin:
    """The part of consume.lua that leases, in Python, for a path of levels."""

    def __init__(self, path):
        self.path = path
        self.states = [gcra.FULL for _ in path]
        self.outs = [token_lease.NO_LEASES for _ in path]

    def run(self, now, costs, most, settled):
        self.outs = [token_lease.outstanding_at(out, now) for out in self.outs]
        for tokens, decays_from, unspent in settled:
            for level, limit in enumerate(self.path):
                self.states[level], self.outs[level] = token_lease.settle(
                    limit, self.states[level], self.outs[level], now, tokens, decays_from[level], unspent[level]
                )
        answers, all_paid = [], True
        for cost in costs:
            decision, after = gcra.consume_path(self.path, self.states, now, abs(cost))
            self.states = list(after) if cost > 0 else self.states
            all_paid = all_paid and decision.allowed
            binding = -1 if decision.binding is None else decision.binding
            answers += (round(decision.retry_after * SECOND), binding, *(full_at - now for full_at in self.states))
        tokens = most if all_paid else 0
        for limit, full_at in zip(self.path, self.states, strict=True):
            tokens = token_lease.available_to_lease(limit, full_at, now, tokens)
        decays_from = [max(float(now), full_at) for full_at in self.states]
        if tokens > 0:
            for level, limit in enumerate(self.path):
                decays_from[level], self.states[level], self.outs[level] = token_lease.lease(
                    limit, self.states[level], self.outs[level], now, tokens
                )
        return [tokens, now, *decays_from, *answers]

    def drop_full_buckets(self, now):
        for level, full_at in enumerate(self.states):
            if full_at <= now:
                self.states[level], self.outs[level] = gcra.FULL, token_lease.NO_LEASES
            elif self.outs[level].tokens <= 0:
                self.outs[level] = token_lease.NO_LEASES


calls = st.tuples(
    st.integers(0, 3_000_000),  # µs since the last
    st.lists(st.floats(-1, 1), max_size=3),  # costs, in capacities
    st.floats(0, 1.5),  # to lease
    st.lists(st.floats(0, 1), max_size=2),  # unspent shares of the oldest leases
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(limits, min_size=1, max_size=3), st.lists(calls, min_size=1, max_size=15))
def test_the_script_gives_the_same_bits_and_stores_them(redis_client, path, calls):
    redis_client.flushall()
    script = at_stopped_clock(load_script("bucketflow", "consume", constants=CONSTANTS))
    keys = [f"level {number}" for number in range(len(path))]
    levels = packed([number for limit in path for number in (limit.span, limit.fill_rate, 0.0)])
    twin, smallest, now, held = Twin(path), min(limit.capacity for limit in path), START, []
    for passed, shares, most, unspent_shares in calls:
        now += passed
        redis_client.set("clock", now)
        costs, wanted = [share * smallest for share in shares], float(int(most * smallest))
        settled = [
            (tokens, decays_from, [share * tokens] * len(path))
            for share, (tokens, decays_from) in zip(unspent_shares, held, strict=False)
        ]
        del held[: len(settled)]
        flat = [
            number
            for tokens, decays_from, unspent in settled
            for number in (tokens, *(n for pair in zip(decays_from, unspent, strict=True) for n in pair))
        ]
        reply = unpacked(
            redis_client.eval(script.text, len(keys), *keys, levels, packed(costs), exact(wanted), packed(flat))
        )
        assert packed(reply) == packed(twin.run(now, costs, wanted, settled))
        if reply[0] > 0:
            held.append((reply[0], reply[2 : 2 + len(path)]))
        twin.drop_full_buckets(now)
        for limit, full_at, out, stored in zip(path, twin.states, twin.outs, redis_client.mget(keys), strict=True):
            if stored is None:
                assert full_at <= now
            else:
                leased = [] if out.tokens <= 0 else [out.floor, out.tokens]
                assert stored == packed([full_at, limit.fill_rate, *leased])
