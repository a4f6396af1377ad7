"""Leases: whoever holds tokens of a bucket, and whatever becomes of him, the limit holds in every window."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shells import at_stopped_clock

from bucketflow import Limit
from bucketflow.algorithm import gcra as core
from bucketflow.algorithm import token_lease as leases
from bucketflow.algorithm.mirror import CONSTANTS
from bucketflow.limit import SECOND
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import load_script
from bucketflow.testing import worst_excess

START = 10 * 365 * 86_400 * SECOND  # no bucket is so old

limits = st.builds(Limit, st.sampled_from([3, 10, 100]), st.sampled_from([0.5, 3, 50, 1000]))
sometime = st.floats(0, 1.5)  # of the time that the bucket needs to fill
STEPS = ("lease", "spend", "settle", "vanish", "consume", "refund")
steps = st.lists(st.tuples(st.sampled_from(STEPS), sometime, st.integers(0, 9), st.floats(0, 1)), max_size=60)
several = settings(max_examples=500, deadline=None)


class Fleet:
    """A bucket, and holders of leases of it, as the scripts and the processes would have them."""

    def __init__(self, limit):
        self.limit, self.now = limit, START
        self.full_at, self.out = core.FULL, leases.NONE
        self.holders = []  # (lease, whole at)
        self.starts = []  # (seconds, cost)
        self.consumed = 0.0

    def step(self, kind, passed, whom, share):
        self.now += round(passed * self.limit.span * (0.1 if whom else 1))
        self.out = leases.outstanding_at(self.out, self.now)
        getattr(self, kind)(whom, share)

    def lease(self, _, share):
        tokens = leases.available_to_lease(self.limit, self.full_at, self.now, 1 + share * self.limit.capacity)
        if tokens > 0:
            whole, self.full_at, self.out = leases.lease(self.limit, self.full_at, self.out, self.now, tokens)
            self.holders.append((leases.TokenLease(tokens, [self.limit], [whole]), whole))

    def spend(self, whom, share):
        if self.holders:
            lease, _ = self.holders[whom % len(self.holders)]
            cost = share * lease.tokens
            if cost and lease.spend(self.now, cost):
                self.start(cost)

    def settle(self, whom, _):
        if self.holders:
            lease, whole = self.holders.pop(whom % len(self.holders))
            (unspent,) = lease.unspent(self.now)
            self.full_at, self.out = leases.settle(
                self.limit, self.full_at, self.out, self.now, lease.tokens, whole, unspent
            )

    def vanish(self, whom, _):
        if self.holders:
            self.holders.pop(whom % len(self.holders))

    def consume(self, _, share):
        decision, self.full_at = core.consume(self.limit, self.full_at, self.now, share * self.limit.capacity)
        if decision.allowed:
            self.consumed += share * self.limit.capacity
            self.start(share * self.limit.capacity)

    def refund(self, _, share):
        """Give back what was taken and not used: it was never started."""
        cost = share * self.consumed
        self.consumed -= cost
        self.full_at = leases.refund(self.limit, self.full_at, self.out, self.now, cost)

    def start(self, cost):
        self.starts.append((self.now / SECOND - START / SECOND, cost))

    def there_is(self):
        held = sum(lease.unspent(self.now)[0] for lease, _ in self.holders)
        return core.tokens_at(self.limit, self.full_at, self.now) + held


def a_tick(limit):
    """Return the tokens of a µs: instants have no finer resolution."""
    return limit.fill_rate / SECOND


@several
@given(limits, steps)
def test_bucket_and_leases_together_never_hold_more_than_the_capacity(limit, steps):
    fleet = Fleet(limit)
    for step in steps:
        fleet.step(*step)
        assert fleet.there_is() <= limit.capacity + a_tick(limit)


@several
@given(limits, steps)
def test_no_window_ever_exceeds_the_limit_whoever_leases_spends_settles_or_vanishes(limit, steps):
    fleet = Fleet(limit)
    for step in steps:
        if step[0] != "refund":  # a refund says that something was not started after all: what, is not known here
            fleet.step(*step)
    assert worst_excess(fleet.starts, limit) <= a_tick(limit)


@pytest.mark.parametrize(("order", "left"), [((2, 1, 0), 94), ((0, 0, 0), 94 - 2 * 28), ((1, 1, 0), 94 - 28)])
def test_leases_cost_what_was_spent_and_what_was_settled_under_a_later_one(order, left):
    fleet = Fleet(Limit(100, 1))
    for _ in range(3):
        fleet.lease(0, 0.29)
    for lease, _ in fleet.holders:
        assert lease.tokens == pytest.approx(30)
        assert lease.spend(fleet.now, 2)
    for whom in order:
        fleet.settle(whom, 0)
    assert fleet.there_is() == pytest.approx(left)
    assert fleet.out == leases.NONE


@pytest.mark.parametrize("holders", [1, 2, 8])
def test_however_many_hold_leases_whoever_stays_below_the_limit_is_served_and_hardly_asks(holders):
    """Each asks for one token at a time, together for nine tenths of what comes."""
    limit = Limit(1000, 100)
    fleet, held, asked, refused = Fleet(limit), [None] * holders, 0, 0
    for request in range(20_000):
        fleet.now = START + round(request / 90 * SECOND)
        whom = request % holders
        if held[whom] is not None and held[whom][0].spend(fleet.now, 1):
            continue
        asked += 1
        fleet.out = leases.outstanding_at(fleet.out, fleet.now)
        if held[whom] is not None:
            fleet.holders.append(held[whom])
            fleet.settle(-1, 0)
        decision, fleet.full_at = core.consume(limit, fleet.full_at, fleet.now)
        refused += not decision.allowed
        fleet.lease(0, 0.099)
        held[whom] = fleet.holders.pop() if fleet.holders else None
    assert refused == 0
    assert asked <= 20_000 / 25


def test_a_lease_that_has_faded_ends_nobody_elses():
    fleet = Fleet(Limit(3, 1))
    fleet.lease(0, 0)
    fleet.now += 10 * SECOND
    fleet.out = leases.outstanding_at(fleet.out, fleet.now)
    fleet.lease(0, 0)
    fleet.settle(0, 0)
    assert fleet.out.tokens == 1
    fleet.refund(0, 0)
    assert fleet.there_is() == pytest.approx(3)


def test_a_lease_of_a_full_bucket_fades_as_the_bucket_refills():
    fleet = Fleet(Limit(100, 10))
    fleet.lease(0, 0.49)
    (lease, _) = fleet.holders[0]
    assert lease.tokens == 50
    fleet.now += 2 * SECOND
    assert not lease.spend(fleet.now, 31)
    assert lease.spend(fleet.now, 30)


def test_a_lease_of_an_empty_bucket_is_whole_until_the_bucket_would_be_full_without_it():
    fleet = Fleet(Limit(100, 10))
    fleet.consume(0, 0.8)
    fleet.lease(0, 0.19)
    (lease, _) = fleet.holders[0]
    fleet.now += 8 * SECOND
    assert lease.unspent(fleet.now) == [20]
    fleet.now += SECOND
    assert lease.unspent(fleet.now) == [10]


def test_what_a_dead_holder_had_is_back_when_it_has_faded():
    fleet = Fleet(Limit(100, 10))
    fleet.lease(0, 0.99)
    fleet.vanish(0, 0)
    assert fleet.there_is() == 0
    fleet.now += 5 * SECOND
    assert fleet.there_is() == 50
    fleet.now += 5 * SECOND
    assert leases.outstanding_at(fleet.out, fleet.now) == leases.NONE
    assert fleet.there_is() == 100


def test_each_level_of_a_path_fades_at_its_own_pace():
    slow, fast = Limit(100, 1), Limit(100, 10)
    lease = leases.TokenLease(50, [slow, fast], [START, START])
    assert lease.unspent(START + 2 * SECOND) == [48, 30]
    assert lease.left == 30
    assert lease.spend(START + 2 * SECOND, 30)
    assert lease.unspent(START + 2 * SECOND) == [18, 0]


# The script is this arithmetic ------------------------------------------------------------------------------------


def packed(numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpacked(reply):
    return list(struct.unpack(f"<{len(reply) // 8}d", reply))


class Twin:
    """What consume.lua does for one who leases, in Python, for a path of levels."""

    def __init__(self, path):
        self.path = path
        self.states = [core.FULL for _ in path]
        self.outs = [leases.NONE for _ in path]

    def run(self, now, costs, most, settled):
        self.outs = [leases.outstanding_at(out, now) for out in self.outs]
        for tokens, whole, unspent in settled:
            for level, limit in enumerate(self.path):
                self.states[level], self.outs[level] = leases.settle(
                    limit, self.states[level], self.outs[level], now, tokens, whole[level], unspent[level]
                )
        answers, all_paid = [], True
        for cost in costs:
            decision, after = core.consume_path(self.path, self.states, now, abs(cost))
            self.states = list(after) if cost > 0 else self.states
            all_paid = all_paid and decision.allowed
            binding = -1 if decision.binding is None else decision.binding
            answers += (round(decision.retry_after * SECOND), binding, *(full_at - now for full_at in self.states))
        tokens = most if all_paid else 0
        for limit, full_at in zip(self.path, self.states, strict=True):
            tokens = leases.available_to_lease(limit, full_at, now, tokens)
        whole = [max(float(now), full_at) for full_at in self.states]
        if tokens > 0:
            for level, limit in enumerate(self.path):
                whole[level], self.states[level], self.outs[level] = leases.lease(
                    limit, self.states[level], self.outs[level], now, tokens
                )
        return [tokens, now, *whole, *answers]

    def forget_what_is_full(self, now):
        for level, full_at in enumerate(self.states):
            if full_at <= now:
                self.states[level], self.outs[level] = core.FULL, leases.NONE
            elif self.outs[level].tokens <= 0:
                self.outs[level] = leases.NONE


calls = st.tuples(
    st.integers(0, 3_000_000),  # µs since the last
    st.lists(st.floats(-1, 1), max_size=3),  # costs, in capacities
    st.floats(0, 1.5),  # to lease
    st.lists(st.floats(0, 1), max_size=2),  # shares of the oldest leases that were not spent
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
        costs, ahead = [share * smallest for share in shares], float(int(most * smallest))
        settled = [
            (tokens, whole, [share * tokens] * len(path))
            for share, (tokens, whole) in zip(unspent_shares, held, strict=False)
        ]
        del held[: len(settled)]
        flat = [
            number
            for tokens, whole, unspent in settled
            for number in (tokens, *(n for pair in zip(whole, unspent, strict=True) for n in pair))
        ]
        reply = unpacked(
            redis_client.eval(script.text, len(keys), *keys, levels, packed(costs), exact(ahead), packed(flat))
        )
        assert packed(reply) == packed(twin.run(now, costs, ahead, settled))
        if reply[0] > 0:
            held.append((reply[0], reply[2 : 2 + len(path)]))
        twin.forget_what_is_full(now)
        for full_at, out, stored in zip(twin.states, twin.outs, redis_client.mget(keys), strict=True):
            if stored is None:
                assert full_at <= now
            else:
                assert stored == packed([full_at] if out.tokens <= 0 else [full_at, out.floor, out.tokens])
