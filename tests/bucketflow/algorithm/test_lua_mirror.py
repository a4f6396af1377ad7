"""gcra.lua equals gcra.py bit for bit: both run the same steps, the Lua on a real server with a controlled clock."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shells import at_stopped_clock

from bucketflow import Limit
from bucketflow.algorithm import gcra
from bucketflow.algorithm.mirror import CONSTANTS, GCRA
from bucketflow.redis_client.encoding import exact
from bucketflow.redis_client.scripts import Script, load_script

OPERATIONS = ("wait_for", "take", "refund", "tokens_at")

PRELUDE = load_script(*GCRA, constants=CONSTANTS).text
MIRROR = Script.of(
    "mirror",
    PRELUDE
    + """
    -- ARGV: capacity, fill_rate, then of each step: operation, now, cost. Returns the result and full_at of each.
    local limit, full_at, reply = limit_of(ARGV[1], ARGV[2]), FULL, {}
    for i = 3, #ARGV, 3 do
      local operation, now, cost = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
      local result
      if operation == 'wait_for' then result = wait_for(limit, full_at, now, cost)
      elseif operation == 'tokens_at' then result = tokens_at(limit, full_at, now)
      elseif operation == 'take' then full_at = take(limit, full_at, now, cost)
      elseif operation == 'refund' then full_at = refund(limit, full_at, now, cost)
      end
      full_at = struct.unpack('<d', struct.pack('<d', full_at))
      reply[#reply + 1] = exact(result or full_at)
      reply[#reply + 1] = exact(full_at)
    end
    return reply
    """,
)

YEAR = 365 * 86_400 * 1_000_000

positive = st.floats(1e-3, 1e6)
limits = st.builds(Limit, positive, positive).filter(lambda limit: limit.span < 30 * YEAR)
moves = st.one_of(
    st.integers(0, 2000),
    st.integers(0, 60_000_000),
    st.integers(-5_000_000, 0),  # the clock was set back
    st.integers(0, YEAR),  # the bucket was idle for long
)
shares = st.one_of(st.just(0.0), st.floats(0, 1), st.sampled_from([0.5, 1.0]))
settings_here = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(number):
    return struct.pack("<d", number)


def packed(numbers):
    return struct.pack(f"<{len(numbers)}d", *numbers)


def unpacked(reply):
    return list(struct.unpack(f"<{len(reply) // 8}d", reply))


def in_python(limit, steps):
    full_at, results = gcra.FULL, []
    for operation, now, cost in steps:
        if operation == "tokens_at":
            result = gcra.tokens_at(limit, full_at, now)
        else:
            result = getattr(gcra, operation)(limit, full_at, now, cost)
            full_at = full_at if operation == "wait_for" else result
        results += (result, full_at)
    return results


def in_lua(client, limit, steps):
    args = [exact(limit.capacity), exact(limit.fill_rate)]
    for operation, now, cost in steps:
        args += (operation, now, exact(cost))
    return [float(number) for number in client.eval(MIRROR.text, 0, *args)]


def assert_same(client, limit, steps):
    for number, (python, lua) in enumerate(zip(in_python(limit, steps), in_lua(client, limit, steps), strict=True)):
        assert bits(python) == bits(lua), (steps[number // 2], python, lua)


def timed(start, steps):
    now = start
    for operation, move, cost in steps:
        now = max(0, now + move)
        yield operation, now, cost


@settings_here
@given(limits, st.integers(0, 20 * YEAR), st.lists(st.tuples(st.sampled_from(OPERATIONS), moves, shares), max_size=50))
def test_every_function_gives_the_same_bits(redis_client, limit, start, steps):
    steps = [(operation, move, share * limit.capacity) for operation, move, share in steps]
    assert_same(redis_client, limit, list(timed(start, steps)))


def test_twenty_thousand_steps_give_the_same_bits(redis_client):
    chance = random.Random(20_240_101)
    for _ in range(20):
        limit = Limit(10 ** chance.uniform(-2, 5), 10 ** chance.uniform(-2, 5))
        steps = []
        for _ in range(1000):
            move = chance.choice([chance.randint(0, 10), chance.randint(0, 10**7), chance.randint(-(10**6), 0), 10**11])
            steps.append((chance.choice(OPERATIONS), move, chance.uniform(0, limit.capacity)))
        assert_same(redis_client, limit, list(timed(chance.randint(0, 10**15), steps)))


costs = st.one_of(shares, shares.map(lambda share: -share))


@settings_here
@given(
    st.lists(limits, min_size=1, max_size=4),
    st.lists(st.tuples(moves, st.lists(costs, min_size=1, max_size=4)), min_size=1, max_size=20),
)
def test_a_path_decides_and_stores_the_same_for_several_costs_at_once_as_one_by_one(redis_client, path, steps):
    redis_client.flushall()
    consume = at_stopped_clock(load_script("bucketflow", "consume", constants=CONSTANTS))
    keys = [f"level {number}" for number in range(len(path))]
    smallest = min(limit.capacity for limit in path)
    levels = packed([number for limit in path for number in (limit.span, limit.fill_rate, 0.0)])
    states = tuple(gcra.FULL for _ in path)
    now = 10 * YEAR
    for move, these in steps:
        now = max(0, now + move)
        redis_client.set("clock", now)
        costs_now = [share * smallest for share in these]
        reply = redis_client.eval(consume.text, len(keys), *keys, levels, packed(costs_now))
        answers = unpacked(reply)
        for cost in costs_now:
            decision, after = gcra.consume_path(path, states, now, abs(cost))
            states = after if cost > 0 else states
            wait, binding, *deficits = answers[: 2 + len(path)]
            del answers[: 2 + len(path)]
            assert (wait == 0) == decision.allowed
            assert binding == (-1 if decision.binding is None else decision.binding)
            assert wait / 1_000_000 == decision.retry_after
            tokens = [gcra.tokens_at(limit, deficit, 0) for limit, deficit in zip(path, deficits, strict=True)]
            left = [gcra.tokens_at(limit, full_at, now) for limit, full_at in zip(path, states, strict=True)]
            assert [bits(number) for number in tokens] == [bits(number) for number in left]
        assert answers == []
        stored = redis_client.mget(keys)
        for limit, full_at, value in zip(path, states, stored, strict=True):
            assert full_at <= now if value is None else packed([full_at, limit.fill_rate]) == value
        # Redis stores no key for a full bucket, where Python keeps a past instant. They differ if the clock steps back.
        states = tuple(gcra.FULL if value is None else full_at for full_at, value in zip(states, stored, strict=True))


@settings_here
@given(
    st.lists(limits, min_size=2, max_size=3),
    st.lists(st.tuples(moves, st.integers(0, 2), st.sampled_from(["consume", "refund"]), shares), max_size=30),
)
def test_callers_with_different_limits_of_one_bucket_get_the_same_answers(redis_client, mixed, steps):
    redis_client.flushall()
    consume = at_stopped_clock(load_script("bucketflow", "consume", constants=CONSTANTS))
    refund = at_stopped_clock(load_script("bucketflow", "refund", (GCRA,), constants=CONSTANTS))
    now = 10 * YEAR
    for move, caller, operation, share in steps:
        now = max(0, now + move)
        redis_client.set("clock", now)
        own = mixed[caller % len(mixed)]
        cost = share * own.capacity
        value = redis_client.get("level")
        stored = (gcra.FULL, own.fill_rate) if value is None else struct.unpack("<dd", value)
        full_at, rate = gcra.at_larger_rate(*stored, own.fill_rate, now)
        limit = Limit(own.capacity, rate)
        if operation == "consume":
            level = packed([own.span, own.fill_rate, 0.0])
            wait, _, missing = unpacked(redis_client.eval(consume.text, 1, "level", level, packed([cost])))
            decision, full_at = gcra.consume(limit, full_at, now, cost)
            assert wait / 1_000_000 == pytest.approx(decision.retry_after, rel=1e-9, abs=2e-6)
            tokens = gcra.tokens_at(own, missing, 0)
            assert tokens == pytest.approx(decision.tokens[0], rel=1e-6, abs=1e-6 * own.capacity)
            if wait or not cost:  # nothing is stored
                assert redis_client.get("level") == value
                continue
        else:
            redis_client.eval(refund.text, 1, "level", exact(cost), exact(own.capacity), exact(own.fill_rate))
            full_at = gcra.refund(limit, full_at, now, cost)
        value = redis_client.get("level")
        if value is None:
            assert full_at <= now + 1
        else:
            assert struct.unpack("<dd", value) == (pytest.approx(full_at, abs=1, rel=0), rate)


@pytest.mark.parametrize("number", [0.1, 1 / 3, 1e-300, 1e300, 2**53 - 1, 5e-324, 123456789.123456789])
def test_numbers_arrive_with_all_their_bits(redis_client, number):
    echo = Script.of("echo", PRELUDE + "return exact(tonumber(ARGV[1]))")
    assert bits(float(redis_client.eval(echo.text, 0, exact(number)))) == bits(number)


def test_the_clock_is_the_servers_and_counts_from_2024(redis_client):
    reading = Script.of("now", PRELUDE + "return exact(now())")
    before, *_ = redis_client.time()
    now = float(redis_client.eval(reading.text, 0)) / 1_000_000
    after, *_ = redis_client.time()
    assert before <= now + 1_704_067_200 <= after + 1
    assert now == pytest.approx(round(now, 6), abs=1e-9)
