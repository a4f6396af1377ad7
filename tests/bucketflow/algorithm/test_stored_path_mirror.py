"""MemoryRedis replies to every script as Redis does, bit for bit: leases, hierarchies and mixed limits included."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shells import at_stopped_clock

from bucketflow import Limit
from bucketflow.algorithm.mirror import CONSTANTS, GCRA
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import load_script
from bucketflow.testing import FakeClock, MemoryRedis

CONSUME = at_stopped_clock(load_script("bucketflow", "consume", constants=CONSTANTS))
REFUND = at_stopped_clock(load_script("bucketflow", "refund", (GCRA,), constants=CONSTANTS))

START = 10_000_000
sizes = st.one_of(st.sampled_from([1.0, 2.0, 5.0, 10.0]), st.floats(0.5, 1e4))
limits = st.builds(Limit, sizes, sizes)
#: The limits of two callers, for a path of up to three levels.
callers = st.integers(1, 3).flatmap(lambda depth: st.lists(st.tuples(*[limits] * depth), min_size=2, max_size=2))
shares = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.floats(0, 1), st.floats(-1, 0))
#: µs to the next step, which caller, what it does, its costs, and the share of a lease that is unspent.
steps = st.tuples(
    st.one_of(st.integers(0, 3), st.integers(0, 3_000_000), st.integers(0, 10**10)),
    st.integers(0, 1),
    st.sampled_from(["consume", "consume", "lease", "lease", "refund"]),
    st.lists(shares, min_size=1, max_size=3),
    st.floats(0, 1),
)


def packed(numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


class Twins:
    """A Redis and its twin at the same time, which must give the same replies."""

    def __init__(self, client, depth):
        client.flushall()
        self.client, self.clock = client, FakeClock()
        self.memory = MemoryRedis(self.clock)
        self.keys = [b"level %d" % level for level in range(depth)]
        self.advance(START)

    def advance(self, microseconds):
        self.clock.advance(microseconds / 1_000_000)
        self.client.set("clock", self.clock.now())
        for key in self.keys:  # no key expires under a stopped clock
            value = self.client.get(key)
            if value is not None and self.memory._buckets._get(key, self.clock.now()) is None:
                assert struct.unpack_from("<d", value)[0] <= self.clock.now()
                self.client.delete(key)

    def consume(self, *args):
        reply = self.memory.run_script("consume", self.keys, args)
        assert self.client.eval(CONSUME.text, len(self.keys), *self.keys, *args) == reply
        return reply

    def refund(self, *args):
        reply = self.memory.run_script("refund", self.keys, args)
        numbers = self.client.eval(REFUND.text, len(self.keys), *self.keys, *args)
        assert packed([float(number) for number in numbers]) == reply


def run(client, callers, steps, missing):
    depth = len(callers[0])
    twins, held = Twins(client, depth), [[] for _ in callers]
    for number, (move, caller, operation, shares, unspent) in enumerate(steps):
        twins.advance(move)
        path = callers[caller]
        costs = [share * min(limit.capacity for limit in path) for share in shares]
        if operation == "refund":
            numbers = [exact(number) for limit in path for number in (limit.capacity, limit.fill_rate)]
            twins.refund(exact(abs(costs[0])), *numbers)
            continue
        initial = missing if number == 0 else 0.0
        levels = packed([x for limit in path for x in (limit.span, limit.fill_rate, initial * limit.span)])
        if operation == "consume":
            twins.consume(levels, packed(costs))
            continue
        settled = []
        for tokens, since in held[caller]:
            settled += [tokens, *(x for decays_from in since for x in (decays_from, tokens * unspent))]
        held[caller].clear()
        reply = twins.consume(levels, packed(costs), b"3", packed(settled))
        tokens, _, *since = struct.unpack_from(f"<{2 + depth}d", reply)
        if tokens:
            held[caller].append((tokens, since))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(callers, st.lists(steps, min_size=1, max_size=25), st.floats(0, 1))
def test_every_reply_is_the_same(redis_client, callers, steps, missing):
    run(redis_client, callers, steps, missing)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_thousands_of_replies_are_the_same_while_leases_of_several_callers_decay(redis_client, depth):
    chance = random.Random(20_240_101 + depth)
    callers = [[Limit(capacity, rate) for _ in range(depth)] for capacity, rate in ((10, 2), (10, 2), (10, 5), (6, 1))]
    operations = ["lease", "lease", "lease", "consume", "refund"]
    steps = [
        (
            chance.randint(0, 900_000),
            chance.randrange(len(callers)),
            chance.choice(operations),
            [chance.choice([0.0, 0.05, 0.1, 0.2])],
            chance.choice([0.0, 0.5, 1.0]),
        )
        for _ in range(1500)
    ]
    run(redis_client, callers, steps, 0.5)
