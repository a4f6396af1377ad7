"""The scripts of levels equal admit.py bit for bit: the same steps on a real server, at chosen times."""

from __future__ import annotations

import math
import random
import struct
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shape import packed_level

from bucketflow.algorithm.mirror import GCRA
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script, load_script
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.scheduling.admit import (
    NO_DEADLINE,
    RESERVATION_GRACE,
    RESERVATION_TTL,
    AdmissionRequest,
    admit,
    cancel_reservation,
    charge,
)
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.store.scripts import CONSTANTS, level_script

NOW = 50_000_000_000_000  # a day in 2025, counted from 2024
YEAR = 365 * 86_400 * 1_000_000
CORE = load_script(*GCRA, constants=CONSTANTS).text

#: Runs a whole story in one call, because no key expires within a script, whatever the real time.
STORY = Script.of(
    "story",
    CORE
    + f"""
    local time_now = 0
    now = function() return time_now end
    local operations = {{
      admit = function(KEYS, ARGV) {level_script("admit").text[len(CORE) :]} end,
      cancel_reservation = function(KEYS, ARGV)
        {level_script("cancel_reservation").text[len(CORE) :]}
      end,
      charge = function(KEYS, ARGV) {level_script("charge").text[len(CORE) :]} end,
    }}
    -- ARGV: of each step: operation, now, how many keys and arguments, keys, arguments.
    -- Returns of each step: the reply, and of each key but the first of admit: name, value, PTTL.
    local at, replies = 1, {{}}
    local function take(count)
      local words = {{}}
      for i = 1, count do words[i] = ARGV[at]; at = at + 1 end
      return words
    end
    while at <= #ARGV do
      local step = take(4)
      local keys = take(tonumber(step[3]))
      local args = take(tonumber(step[4]))
      time_now = tonumber(step[2])
      local reply = operations[step[1]](keys, args)
      local stored = {{}}
      for _, key in ipairs(keys) do
        stored[#stored + 1] = {{key, redis.call('GET', key), redis.call('PTTL', key)}}
      end
      replies[#replies + 1] = {{reply, stored}}
    end
    return replies
    """,
)


class Recorder:
    """Replaces a ScriptRunner: records what the binding sends, and returns a given reply."""

    def __init__(self, reply=None):
        self.sent, self.reply = None, reply

    def run(self, script, keys, args):
        self.sent = script.name, keys, args
        return self.reply if self.reply is not None else [b"not this version"]


@dataclass(frozen=True)
class Step:
    """One call to the store, at its time, and the result in Python."""

    operation: str
    now: int
    requests: tuple[AdmissionRequest, ...]
    decisions: tuple
    states: dict
    written: set

    @property
    def sent(self):
        """Return what the binding sends for this call: operation, keys, arguments."""
        recorder = Recorder()
        store = RedisStore(recorder, "twin")
        if self.operation == "admit":
            store.admit(self.requests, "").run()
        elif self.operation == "charge":
            store.charge(charges(self.requests[0])).run()
        else:
            store.cancel_reservation(self.requests[0])
        return recorder.sent


def charges(request):
    """Return a charge of each level on the path of *request*, each of another number of tokens."""
    return [(level, request.cost * number) for number, level in enumerate(request.path, 1)]


class Story:
    """Tasks that retry with their reservations: decided in Python, and recorded as steps for the server."""

    def __init__(self, start=NOW):
        self.now, self.states, self.steps = start, {}, []

    def move(self, by):
        self.now = max(1, self.now + by)

    def admit(self, requests):
        before = dict(self.states)
        decisions = tuple(admit(requests, self.states, self.now))
        written = {key for key, state in self.states.items() if state is not before.get(key)}
        # Python keeps a level that has expired in Redis. Only after a clock that steps back the two would differ.
        for key in written:
            if max(self.states[key].full_at, self.states[key].reserved_until) + RESERVATION_TTL <= self.now:
                del self.states[key]
        self._record("admit", requests, decisions, written & set(self.states))
        return decisions

    def cancel_reservation(self, request):
        before = dict(self.states)
        cancel_reservation(request, self.states, self.now)
        written = {key for key, state in self.states.items() if state is not before.get(key)}
        self._record("cancel_reservation", (request,), (), written)

    def charge(self, request):
        charge(charges(request), self.states, self.now)
        self._record("charge", (request,), (), {level.key for level in request.path})

    def _record(self, operation, requests, decisions, written):
        step = Step(operation, self.now, tuple(requests), decisions, dict(self.states), written)
        if step.sent is not None:
            self.steps.append(step)

    def check(self, client):
        argv = []
        for step in self.steps:
            name, keys, args = step.sent
            argv += (name, str(step.now), str(len(keys)), str(len(args)), *keys, *args)
        for step, (reply, stored) in zip(self.steps, client.eval(STORY.text, 0, *argv), strict=True):
            if step.operation == "admit":
                decisions = RedisStore(Recorder(reply), "twin").admit(step.requests, "").run()
                assert tuple(decisions) == step.decisions, step
            for key, value, ttl in stored:
                self._check_key(step, key.decode().removeprefix("{twin}:"), value, ttl)

    @staticmethod
    def _check_key(step, name, value, ttl):
        state = step.states.get(name)
        assert (value is None) == (state is None), (name, step)
        if state is None:
            return
        assert value == packed_level(state), (name, struct.unpack(f"<{len(value) // 8}d", value), step)
        assert ttl >= 0, "it has no expiry"  # PTTL knows the real time, which goes on during a script
        if name in step.written:
            latest = max(state.full_at, state.reserved_until, state.debt_at)
            left = math.ceil((latest + RESERVATION_TTL - step.now) / 1000)
            assert max(1, left) - 1000 <= ttl <= max(1, left), "it expires when it equals an unused level"


# Random stories

NAMES = ("all", "queue", "tenant", "task")
positive = st.floats(1e-2, 1e5)
rates = st.one_of(st.sampled_from([(1, 1), (5, 10), (1, 1 / 60)]), st.tuples(positive, positive))
levels = st.lists(rates, min_size=8, max_size=8).map(
    lambda pairs: [Level(NAMES[number % 4], f"level {number}", Limit(*pair)) for number, pair in enumerate(pairs)]
)
paths = st.lists(st.booleans(), min_size=4, max_size=4).filter(any)
tasks = st.lists(
    st.tuples(paths, paths, st.floats(0.001, 1), st.sampled_from([NO_DEADLINE, NO_DEADLINE, 0, 1_000_000])),
    min_size=1,
    max_size=8,
)
moves = st.one_of(
    st.integers(0, 3000),
    st.integers(0, 3_000_000),
    st.integers(RESERVATION_TTL - 2, RESERVATION_TTL + 2),
    st.integers(RESERVATION_GRACE - 2, RESERVATION_GRACE + 2),
    st.integers(-5_000_000, 0),  # the clock steps back
    st.integers(0, YEAR),  # no task for a long time
    st.just("due"),  # exactly at the earliest start time of the batch
)
batches = st.lists(st.integers(0, 7), min_size=1, max_size=6)
steps = st.lists(
    st.tuples(moves, st.sampled_from(["admit"] * 6 + ["cancel_reservation"] * 2 + ["charge"]), batches), max_size=30
)


def story_of(levels, tasks, steps):
    """Return the story in which *tasks*, each with a path through *levels*, do *steps*."""
    story, cast = Story(), []
    for on, twins, share, max_wait_us in tasks:
        path = tuple(levels[number + 4 * twins[number]] for number in range(4) if on[number])
        cost = max(1e-3, share * min(level.limit.capacity for level in path))
        cast.append(AdmissionRequest(path, cost, (0,) * len(path), max_wait_us))
    for move, operation, who in steps:
        batch = list(dict.fromkeys(number % len(cast) for number in who))
        dues = [due for number in batch for due in cast[number].reservations if due > story.now]
        story.move((min(dues) - story.now if dues else 0) if move == "due" else move)
        if operation == "charge":
            story.charge(cast[batch[0]])
            continue
        if operation == "cancel_reservation":
            story.cancel_reservation(cast[batch[0]])
            cast[batch[0]] = replace(cast[batch[0]], reservations=(0,) * len(cast[batch[0]].path))
            continue
        for number, decision in zip(batch, story.admit([cast[number] for number in batch]), strict=True):
            dues = (0,) * len(decision.reservations) if decision.admitted else decision.reservations
            cast[number] = replace(cast[number], reservations=dues)
    return story


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(levels, tasks, steps)
def test_any_story_gives_the_same_decisions_and_the_same_bits(redis_client, levels, tasks, steps):
    redis_client.flushall()
    story_of(levels, tasks, steps).check(redis_client)


def test_ten_thousand_steps_give_the_same_decisions_and_the_same_bits(redis_client):
    chance = random.Random(20_240_101)
    counted = {True: 0, False: 0, None: 0}
    for _ in range(50):
        redis_client.flushall()
        rate = lambda: (10 ** chance.uniform(-1, 2), 10 ** chance.uniform(-1, 3))  # noqa: E731
        levels = [Level(NAMES[number % 4], f"level {number}", Limit(*rate())) for number in range(8)]
        tasks = [
            (
                [chance.random() < 0.6, True, chance.random() < 0.6, chance.random() < 0.5],
                [chance.random() < 0.5 for _ in range(4)],
                chance.uniform(0.01, 1),
                chance.choice([NO_DEADLINE, NO_DEADLINE, NO_DEADLINE, 500_000]),
            )
            for _ in range(chance.randint(3, 12))
        ]
        steps = [
            (
                chance.choice(
                    ["due", "due", chance.randint(0, 10**5), chance.randint(0, 10**7), -chance.randint(0, 10**6)]
                ),
                chance.choice(["admit"] * 18 + ["cancel_reservation"] * 2 + ["charge"]),
                [chance.randrange(12) for _ in range(chance.randint(1, 6))],
            )
            for _ in range(200)
        ]
        story = story_of(levels, tasks, steps)
        story.check(redis_client)
        for step in story.steps:
            for decision in step.decisions:
                counted[None if decision.binding is None and not decision.admitted else decision.admitted] += 1
    assert min(counted.values()) > 1000, "a story must contain every kind of decision"


# Writes and expiry


LEVEL = Level("queue", "q:q", Limit(1, 1))


def test_a_call_with_another_version_of_the_limits_returns_the_version_and_writes_nothing(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    store.set_limits({"queues": {"q": "1/s"}})
    before = {key: redis_client.get(key) for key in redis_client.scan_iter()}
    version = store.limits().version
    assert store.admit([AdmissionRequest((LEVEL,), 1, (0,))], "").run() == StaleLimits(version)
    assert redis_client.eval(level_script("admit").text, 1, "{twin}:limits:version", "old") == [version.encode()]
    assert {key: redis_client.get(key) for key in redis_client.scan_iter()} == before
    assert store.admit([AdmissionRequest((LEVEL,), 1, (0,))], version).run()[0].admitted


@pytest.mark.parametrize("raw", [b"garbage", b"\xff\xfe", b"[]", b"5", b'{"queues": 5}'])
def test_a_malformed_table_of_limits_is_a_config_error_and_no_crash(redis_client, raw):
    redis_client.mset({"{twin}:limits": raw, "{twin}:limits:version": "v"})
    found = RedisStore(ScriptRunner(redis_client), "twin").limits()
    mistakes = []
    LimitTable.parse(found.table, mistakes)
    assert (found.version, len(mistakes)) == ("v", 1)


def test_every_level_that_is_written_has_an_expiry(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    slow = Level("tenant", "q:q/t:a", Limit(1, 0.01))
    requests = [AdmissionRequest((LEVEL, slow), 1, (0, 0)) for _ in range(3)]
    decisions = store.admit(requests, "").run()
    assert [decision.admitted for decision in decisions] == [True, False, False]
    keys = redis_client.keys()
    assert len(keys) == 2
    assert all(redis_client.pttl(key) > 0 for key in keys)
    store.cancel_reservation(replace(requests[2], reservations=decisions[2].reservations))
    assert all(redis_client.pttl(key) > 0 for key in redis_client.scan_iter())


def test_peek_reads_what_admit_wrote(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    store.admit([AdmissionRequest((LEVEL,), 1, (0,)), AdmissionRequest((LEVEL,), 1, (0,))], "").run()
    now, [state] = store.peek([LEVEL])
    assert redis_client.get("{twin}:q:q") == packed_level(state)
    assert 0 < state.full_at - now <= state.reserved_until - now <= 1_000_000


@pytest.mark.parametrize("max_wait_us", [0, 999_999, 1_000_000, NO_DEADLINE])
def test_a_deadline_is_the_same_to_the_last_tick(redis_client, max_wait_us):
    story = Story()
    decisions = story.admit([AdmissionRequest((LEVEL,), 1, (0,), max_wait_us)] * 3)
    assert bool(decisions[1].reservations[0]) == (max_wait_us >= 1_000_000)
    story.check(redis_client)


@pytest.mark.parametrize("name", ["queue", "tenant"])
@pytest.mark.parametrize("after", [RESERVATION_TTL - 1, RESERVATION_TTL, RESERVATION_TTL + 1])
def test_reservations_are_dropped_at_the_same_tick(redis_client, name, after):
    level, story = Level(name, "level", Limit(1, 1)), Story()
    for _ in range(9):
        story.admit([AdmissionRequest((level,), 1, (0,))])
    story.move(1_000_000 + after)
    (decision,) = story.admit([AdmissionRequest((level,), 1, (0,))])
    assert decision.admitted == (after >= RESERVATION_TTL)
    story.check(redis_client)


def test_limits_that_change_often_give_the_same_decisions_and_the_same_bits(redis_client):
    dice = random.Random(7)
    for _ in range(10):
        story, dues = Story(), [0]
        for _ in range(100):
            limit = Limit(dice.choice([1, 5, 100]), dice.choice([0.5, 3, 7.25, 100]))
            level = Level(dice.choice(["queue", "tenant"]), "level", limit)
            story.now += dice.choice([0, 1, 999, 10_000, 300_000, 5_000_000])
            decisions = story.admit(
                [AdmissionRequest((level,), 1, (dice.choice(dues),)) for _ in range(dice.randint(1, 3))]
            )
            dues = [0, *(due for decision in decisions for due in decision.reservations)]
            if dice.random() < 0.2:
                story.cancel_reservation(AdmissionRequest((level,), 1, (dice.choice(dues),)))
        redis_client.flushdb()
        story.check(redis_client)
