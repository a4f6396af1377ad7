"""admit.lua and cancel_reservation.lua are admit.py, bit for bit: the same steps on a real server, at chosen times."""

from __future__ import annotations

import math
import random
import struct
from dataclasses import astuple, dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
)
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.redis_store import RedisStore

NOW = 50_000_000_000_000  # some day of 2025, on the clock that counts from 2024
YEAR = 365 * 86_400 * 1_000_000
CORE = Script.compose("core", "").text

#: Runs whole stories in one call: inside a script no key expires, whatever the real time.
STORY = Script.compose(
    "story",
    f"""
    local time_now = 0
    now = function() return time_now end
    local operations = {{
      admit = function(KEYS, ARGV) {load_script("bucketflow_celery.store", "admit").text[len(CORE) :]} end,
      cancel_reservation = function(KEYS, ARGV)
        {load_script("bucketflow_celery.store", "cancel_reservation").text[len(CORE) :]}
      end,
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
    """In place of a ScriptRunner: takes down what the binding sends, and answers what it is told to."""

    def __init__(self, reply=None):
        self.sent, self.reply = None, reply

    def run(self, script, keys, args):
        self.sent = script.name, keys, args
        return self.reply if self.reply is not None else [b"not this version"]


@dataclass(frozen=True)
class Step:
    """One question to the store, at its time, and what Python makes of it."""

    operation: str
    now: int
    asks: tuple[AdmissionRequest, ...]
    answers: tuple
    states: dict
    written: set

    @property
    def sent(self):
        """What the binding sends, once a store is asked this: operation, keys, arguments."""
        recorder = Recorder()
        store = RedisStore(recorder, "twin")
        if self.operation == "admit":
            store.admit(self.asks, "").run()
        else:
            store.cancel_reservation(self.asks[0])
        return recorder.sent


class Story:
    """Tasks that ask again and again, with the places they were promised, in Python; the steps are for the server."""

    def __init__(self, start=NOW):
        self.now, self.states, self.steps = start, {}, []

    def move(self, by):
        self.now = max(1, self.now + by)

    def admit(self, asks):
        before = dict(self.states)
        answers = tuple(admit(asks, self.states, self.now))
        written = {key for key, state in self.states.items() if state is not before.get(key)}
        # Where Python keeps what says nothing any more, Redis keeps nothing; a clock set back tells the two apart.
        for key in written:
            if max(self.states[key].full_at, self.states[key].reserved_until) + RESERVATION_TTL <= self.now:
                del self.states[key]
        self._note("admit", asks, answers, written & set(self.states))
        return answers

    def cancel_reservation(self, ask):
        before = dict(self.states)
        cancel_reservation(ask, self.states, self.now)
        written = {key for key, state in self.states.items() if state is not before.get(key)}
        self._note("cancel_reservation", (ask,), (), written)

    def _note(self, operation, asks, answers, written):
        step = Step(operation, self.now, tuple(asks), answers, dict(self.states), written)
        if step.sent is not None:
            self.steps.append(step)

    def check(self, client):
        argv = []
        for step in self.steps:
            name, keys, args = step.sent
            argv += (name, str(step.now), str(len(keys)), str(len(args)), *keys, *args)
        for step, (reply, stored) in zip(self.steps, client.eval(STORY.text, 0, *argv), strict=True):
            if step.operation == "admit":
                answers = RedisStore(Recorder(reply), "twin").admit(step.asks, "").run()
                assert tuple(answers) == step.answers, step
            for key, value, ttl in stored:
                self._check_key(step, key.decode().removeprefix("{twin}:"), value, ttl)

    @staticmethod
    def _check_key(step, name, value, ttl):
        state = step.states.get(name)
        assert (value is None) == (state is None), (name, step)
        if state is None:
            return
        assert value == struct.pack("<dddd", *astuple(state)), (name, struct.unpack("<dddd", value), step)
        assert ttl >= 0, "it has no expiry"  # PTTL knows the real time, which goes on during a script
        if name in step.written:
            left = math.ceil((max(state.full_at, state.reserved_until) + RESERVATION_TTL - step.now) / 1000)
            assert max(1, left) - 1000 <= ttl <= max(1, left), "it expires when it says nothing any more"


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
    st.integers(-5_000_000, 0),  # the clock was set back
    st.integers(0, YEAR),  # nobody came for long
    st.just("due"),  # exactly when the first of them was told to come
)
batches = st.lists(st.integers(0, 7), min_size=1, max_size=6)
steps = st.lists(
    st.tuples(moves, st.sampled_from(["admit", "admit", "admit", "cancel_reservation"]), batches), max_size=30
)


def tell(levels, tasks, steps):
    """Return the story of *tasks*, each with a path through *levels*, that do *steps*."""
    story, cast = Story(), []
    for on, twins, share, patience in tasks:
        path = tuple(levels[number + 4 * twins[number]] for number in range(4) if on[number])
        cost = max(1e-3, share * min(level.limit.capacity for level in path))
        cast.append(AdmissionRequest(path, cost, (0,) * len(path), patience))
    for move, operation, who in steps:
        batch = list(dict.fromkeys(number % len(cast) for number in who))
        dues = [due for number in batch for due in cast[number].reservations if due > story.now]
        story.move((min(dues) - story.now if dues else 0) if move == "due" else move)
        if operation == "cancel_reservation":
            story.cancel_reservation(cast[batch[0]])
            cast[batch[0]] = replace(cast[batch[0]], reservations=(0,) * len(cast[batch[0]].path))
            continue
        for number, answer in zip(batch, story.admit([cast[number] for number in batch]), strict=True):
            dues = (0,) * len(answer.reservations) if answer.admitted else answer.reservations
            cast[number] = replace(cast[number], reservations=dues)
    return story


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(levels, tasks, steps)
def test_any_story_gives_the_same_answers_and_the_same_bits(redis_client, levels, tasks, steps):
    redis_client.flushall()
    tell(levels, tasks, steps).check(redis_client)


def test_ten_thousand_steps_give_the_same_answers_and_the_same_bits(redis_client):
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
                chance.choice(["admit"] * 9 + ["cancel_reservation"]),
                [chance.randrange(12) for _ in range(chance.randint(1, 6))],
            )
            for _ in range(200)
        ]
        story = tell(levels, tasks, steps)
        story.check(redis_client)
        for step in story.steps:
            for answer in step.answers:
                counted[None if answer.binding is None and not answer.admitted else answer.admitted] += 1
    assert min(counted.values()) > 1000, "a story in which everybody is told the same tells nothing"


# What is written, and what is not


LEVEL = Level("queue", "q:q", Limit(1, 1))


def test_with_another_version_of_the_limits_it_answers_the_version_and_writes_nothing(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    store.set_limits({"queues": {"q": "1/s"}})
    before = {key: redis_client.get(key) for key in redis_client.scan_iter()}
    version = store.limits().version
    assert store.admit([AdmissionRequest((LEVEL,), 1, (0,))], "").run() == StaleLimits(version)
    assert redis_client.eval(
        load_script("bucketflow_celery.store", "admit").text, 1, "{twin}:limits:version", "old"
    ) == [version.encode()]
    assert {key: redis_client.get(key) for key in redis_client.scan_iter()} == before
    assert store.admit([AdmissionRequest((LEVEL,), 1, (0,))], version).run()[0].admitted


@pytest.mark.parametrize("raw", [b"garbage", b"\xff\xfe", b"[]", b"5", b'{"queues": 5}'])
def test_a_table_of_limits_that_nobody_can_read_is_a_mistake_and_no_crash(redis_client, raw):
    redis_client.mset({"{twin}:limits": raw, "{twin}:limits:version": "v"})
    told = RedisStore(ScriptRunner(redis_client), "twin").limits()
    mistakes = []
    LimitTable.parse(told.table, mistakes)
    assert (told.version, len(mistakes)) == ("v", 1)


def test_every_level_it_writes_expires_and_a_level_that_is_full_again_is_gone(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    slow = Level("tenant", "q:q/t:a", Limit(1, 0.01))
    asks = [AdmissionRequest((LEVEL, slow), 1, (0, 0)) for _ in range(3)]
    answers = store.admit(asks, "").run()
    assert [answer.admitted for answer in answers] == [True, False, False]
    keys = redis_client.keys()
    assert len(keys) == 2
    assert all(redis_client.pttl(key) > 0 for key in keys)
    store.cancel_reservation(replace(asks[2], reservations=answers[2].reservations))
    assert all(redis_client.pttl(key) > 0 for key in redis_client.scan_iter())


def test_peek_reads_what_admit_wrote(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    store.admit([AdmissionRequest((LEVEL,), 1, (0,)), AdmissionRequest((LEVEL,), 1, (0,))], "").run()
    now, [state] = store.peek([LEVEL])
    assert redis_client.get("{twin}:q:q") == struct.pack("<dddd", *astuple(state))
    assert 0 < state.full_at - now <= state.reserved_until - now <= 1_000_000


@pytest.mark.parametrize("patience", [0, 999_999, 1_000_000, NO_DEADLINE])
def test_patience_is_the_same_to_the_last_tick(redis_client, patience):
    story = Story()
    answers = story.admit([AdmissionRequest((LEVEL,), 1, (0,), patience)] * 3)
    assert bool(answers[1].reservations[0]) == (patience >= 1_000_000)
    story.check(redis_client)


@pytest.mark.parametrize("name", ["queue", "tenant"])
@pytest.mark.parametrize("after", [RESERVATION_TTL - 1, RESERVATION_TTL, RESERVATION_TTL + 1])
def test_a_line_is_dissolved_at_the_same_tick(redis_client, name, after):
    level, story = Level(name, "level", Limit(1, 1)), Story()
    for _ in range(9):
        story.admit([AdmissionRequest((level,), 1, (0,))])
    story.move(1_000_000 + after)
    (answer,) = story.admit([AdmissionRequest((level,), 1, (0,))])
    assert answer.admitted == (after >= RESERVATION_TTL)
    story.check(redis_client)


def test_limits_that_change_all_the_time_give_the_same_answers_and_the_same_bits(redis_client):
    dice = random.Random(7)
    for _ in range(10):
        story, dues = Story(), [0]
        for _ in range(100):
            limit = Limit(dice.choice([1, 5, 100]), dice.choice([0.5, 3, 7.25, 100]))
            level = Level(dice.choice(["queue", "tenant"]), "level", limit)
            story.now += dice.choice([0, 1, 999, 10_000, 300_000, 5_000_000])
            answers = story.admit(
                [AdmissionRequest((level,), 1, (dice.choice(dues),)) for _ in range(dice.randint(1, 3))]
            )
            dues = [0, *(due for answer in answers for due in answer.reservations)]
            if dice.random() < 0.2:
                story.cancel_reservation(AdmissionRequest((level,), 1, (dice.choice(dues),)))
        redis_client.flushdb()
        story.check(redis_client)
