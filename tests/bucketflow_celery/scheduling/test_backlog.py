"""Whose turn it is among parked tasks: backlog.py as a specification."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow.testing import worst_excess
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.admit import EMPTY, AdmissionRequest, admit
from bucketflow_celery.scheduling.backlog import NOTIFY_INTERVAL, POLL_GRACE, POLL_TOLERANCE, Backlog, refund_path
from bucketflow_celery.scheduling.dispatch import MAX_TENANTS, PAUSED_DELAY, SPARE_TENANTS, dispatch
from bucketflow_celery.scheduling.model import (
    FULL,
    KNOWN,
    DispatchRequest,
    Lane,
    LeasedTask,
    ParkedMessage,
    TaskSpec,
    TenantSpec,
)

SECOND = 1_000_000
NOW = 1_000 * SECOND
#: What is written as "tenant/task:rank*cost"; all but the tenant may be left out, "-" is none.
TASK = re.compile(r"(?P<tenant>[^/:*]+)(/(?P<task>\w+))?(:(?P<rank>\d+))?(\*(?P<cost>[\d.]+))?")


class Play:
    """One queue and its workers; who is dispatched what reads "a1 b1 a2": the first task of a, the first of b, ..."""

    def __init__(self, common=None, *, tenants=(), tasks=(), weights=(), paused=(), unknown=()):  # noqa: PLR0913
        self.backlog, self.now, self.states, self.owned = Backlog("q"), NOW, {}, {}
        self.queue_path = () if common is None else (Level("queue", "q:q", common),)
        self.tenants, self.tasks, self.weights = dict(tenants), dict(tasks), dict(weights)
        self.paused, self.unknown = set(paused), {worker: set(names) for worker, names in dict(unknown).items()}
        self.numbers, self.known, self.version = Counter(), {}, ""
        self.called, self.wait, self.starts = 0, None, []

    def park(self, text, *, limit=1000, busy=False, max_wait_us=0):
        parcels = []
        for word in text.split():
            found = TASK.fullmatch(word)
            tenant = found["tenant"].replace("-", "")
            self.numbers[tenant] += 1
            lane = Lane(tenant, found["task"] or "f", int(found["rank"] or 0))
            uid = f"{found['tenant']}{self.numbers[tenant]}".encode()
            parcels.append(ParkedMessage(uid, lane, b"message of " + uid, float(found["cost"] or 1), max_wait_us))
        return self.park_again(parcels, limit=limit, busy=busy)

    def park_again(self, parcels, *, limit=1000, busy=False):
        positions, call = self.backlog.park(parcels, limit, self.now, busy=busy)
        self.called += call
        return positions

    def request(self, worker="w", free=1):
        unknown = self.unknown.get(worker, ())
        return DispatchRequest(
            worker,
            free,
            self.queue_path,
            tuple(
                TenantSpec(
                    known.tenant,
                    tuple(
                        TaskSpec(task, ranks, self.level("task", known.tenant, task), task not in unknown,
                                 task in self.paused or known.tenant in self.paused)
                        for task, ranks in known.types
                    ),
                    self.weights.get(known.tenant, 1.0),
                    self.level("tenant", known.tenant),
                )
                for known in self.known.get(worker, ())
            ),
        )  # fmt: skip

    def level(self, name, tenant, task=""):
        limit = self.tasks.get(task) if name == "task" else self.tenants.get(tenant)
        return limit and Level(name, f"{name} {tenant} {task}", limit)

    def ask(self, worker="w", free=1):
        """AdmissionRequest once."""
        released, call = dispatch(
            self.backlog, self.request(worker, free), self.owned, self.states, self.now, version=self.version
        )
        self.called += call
        self.known[worker], self.wait = released.next, released.wait
        self.starts += [(self.now / SECOND, one) for one in released.dispatched if one.admitted]
        return released.dispatched

    def come(self, worker="w", free=1):
        """AdmissionRequest as a worker does: at once again while it is told so; return who was admitted."""
        admitted = []
        for _ in range(200):
            admitted += [one for one in self.ask(worker, free - len(admitted)) if one.admitted]
            if self.wait != 0 or len(admitted) == free:
                return text_of(admitted)
        raise AssertionError(f"it asks for ever, without a pause, and has {text_of(admitted)}")

    def drain(self, worker="w", most=1000):
        """Let one worker come with one slot whenever it is told to, until nothing is left; return who was admitted."""
        found = []
        while self.backlog.count and len(found) < most:
            found += self.come(worker).split()
            if self.wait is not None:
                self.now += self.wait
            elif not found:
                break
        return " ".join(found)


def text_of(dispatched):
    return " ".join(one.owned.item.uid.decode() for one in dispatched)


def tenants_of(text):
    return "".join(re.sub(r"\d", "", word) for word in text.split())


# Who is next

ORDER = [
    # parked, in this order;               dispatched out;                      why
    ("a a a",                              "a1 a2 a3",                      "first come, first served"),
    ("a:5 a:0 a:5 a:0",                    "a2 a4 a1 a3",                   "the lower rank first"),
    ("a:255 a:3 a:20",                     "a2 a3 a1",                      "ranks are numbers"),
    ("a/f a/f a/f a/g a/g",                "a1 a4 a2 a5 a3",                "task types take turns"),
    ("a/f:9 a/f:9 a/g:0 a/g:0",            "a1 a3 a2 a4",                   "a rank counts within its type"),
    ("a/f a/g a/h a/h a/g a/f",            "a1 a2 a3 a6 a5 a4",             "three types, and each its line"),
    ("a a a a b b",                        "a1 b1 a2 b2 a3 a4",             "tenants take turns, whatever they have"),
    ("b b a a",                            "a1 b1 a2 b2",                   "at the same tag the name decides"),
    ("- - a a",                            "-1 a1 -2 a2",                   "tasks without a tenant count as one"),
    ("a*3 a*3 b b b b",                    "a1 b1 b2 b3 a2 b4",             "shares are of tokens, not of tasks"),
    ("a/f*2 a/g*0.5 a/f*2 b b b b b",      "a1 b1 b2 a2 b3 a3 b4 b5",       "also among types"),
]  # fmt: skip


@pytest.mark.parametrize(("parked", "dispatched"), [row[:2] for row in ORDER], ids=[row[2] for row in ORDER])
@pytest.mark.parametrize("free", [1, 3, 100])
def test_the_order(parked, dispatched, free):
    play, found = Play(), []
    assert min(play.park(parked)) == 1
    while play.backlog.count:
        found += play.come(free=free).split()
    assert " ".join(found) == dispatched
    assert play.backlog.messages.keys() == play.owned.keys() == {uid.encode() for uid in dispatched.split()}


def test_a_task_comes_as_it_was_parked_and_belongs_to_who_asked():
    play = Play()
    play.now += 5
    play.backlog.park(
        [ParkedMessage(b"u", Lane("a", "f", 7), b"\x00message", 1.0, 100, redelivered=True)], 10, play.now, busy=False
    )
    play.now += 50
    assert play.ask() == ()  # it has not heard of the tenant
    assert (play.wait, play.known["w"]) == (0, (("a", (("f", (7,)),)),))
    (dispatched,) = play.ask()
    assert (dispatched.message, dispatched.admitted) == (b"\x00message", True)
    assert dispatched.owned == LeasedTask("q", Lane("a", "f", 7), dispatched.owned.item)
    item = dispatched.owned.item
    assert (item.uid, item.since, item.deadline, item.redelivered) == (b"u", NOW + 5, NOW + 105, True)
    assert play.owned == {b"u": dispatched.owned}


def test_tasks_parked_in_one_call_can_be_told_apart_by_when_they_were_parked():
    play = Play()
    play.park("a b a c")
    play.come(free=4)
    since = {uid: one.item.since for uid, one in play.owned.items()}
    assert since == {b"a1": NOW, b"b1": NOW + 1, b"a2": NOW + 2, b"c1": NOW + 3}


POSITIONS = [
    # parked;      at most;  positions in their lanes
    ("a a b a",        100,  [1, 2, 1, 3]),
    ("a a:1 a/g",      100,  [1, 1, 1]),
    ("a a b a",          2,  [1, 2, FULL, FULL]),
    ("a",                0,  [FULL]),
]  # fmt: skip


@pytest.mark.parametrize(("parked", "limit", "positions"), POSITIONS)
def test_positions(parked, limit, positions):
    assert Play().park(parked, limit=limit) == positions


def test_a_message_is_parked_once_while_it_waits_while_it_runs_and_until_its_broker_has_forgotten_it():
    play, again = Play(), [ParkedMessage(b"a1", Lane("b", "g"), b"again")]
    play.park("a")
    assert play.park_again(again * 2) == [KNOWN, KNOWN]
    assert play.park_again(again, limit=0) == [KNOWN], "a full backlog does not make it unknown"
    assert play.come() == "a1"
    assert play.park_again(again) == [KNOWN]
    del play.backlog.messages[b"a1"]  # it has ended
    assert play.park_again(again) == [KNOWN]
    del play.backlog.dedup[b"a1"]
    assert play.park_again(again) == [1]


def test_what_was_handed_out_leaves_room():
    play = Play()
    assert play.park("a a", limit=1) == [1, FULL]
    play.come()
    assert play.park("a a", limit=1) == [1, FULL]


def test_tasks_that_are_put_back_come_first_each_in_its_line():
    play = Play()
    play.park("a a a a:1")
    assert play.come(free=2) == "a1 a2"
    for uid in (b"a2", b"a1"):
        play.backlog.return_to_front(play.owned.pop(uid))
    assert play.come(free=4) == "a1 a2 a3 a4"
    play.backlog.return_to_front(play.owned.pop(b"a4"))
    play.backlog.return_to_front(play.owned.pop(b"a3"))
    assert play.come(free=4) == "a3 a4"


# Shares

weights = st.lists(st.sampled_from([1.0, 1.0, 2.0, 3.0, 5.0, 0.5, 1 / 3, 7.25, 100.0]), min_size=2, max_size=5)


@given(weights, st.integers(1, 60), st.integers(1, 5))
def test_tenants_are_served_in_proportion_to_their_weights_within_one_task(given, count, free):
    names = "abcde"[: len(given)]
    play = Play(weights=dict(zip(names, given, strict=True)))
    for name in names:
        play.park(" ".join([name] * 70))
    served = Counter()
    while sum(served.values()) < count:
        served.update(tenants_of(play.come(free=free)))
    if max(served.values()) < 70:
        # Whoever shares a fluid by weight had w_i × v at some instant v: each is within one task of that.
        assert max((served[name] - 1) / weight for name, weight in zip(names, given, strict=True)) <= 1e-9 + min(
            served[name] / weight for name, weight in zip(names, given, strict=True)
        )


def test_weights_of_5_3_and_1_are_kept_all_the_time():
    play = Play(weights={"a": 5, "b": 3, "c": 1})
    for name in "abc":
        play.park(" ".join([name] * 600), limit=2000)
    served = Counter()
    for count in range(1, 901):
        served[tenants_of(play.come())] += 1
        for name, weight in play.weights.items():
            # Of all tokens, not beside another tenant: there the first round of all tenants counts, too.
            assert abs(served[name] - count * weight / 9) <= 1 + 1 / 8
    assert served == {"a": 500, "b": 300, "c": 100}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 80)), min_size=2, max_size=6))
def test_equal_tenants_share_equally_whatever_their_backlog_and_whenever_they_came(arrivals):
    play, served, begun = Play(), [], {}
    names = "abcdef"[: len(arrivals)]
    for step in range(150):
        for name, (at, backlog) in zip(names, arrivals, strict=True):
            if at == step:
                play.park(" ".join([name] * backlog))
                begun[name] = len(served)
        served += list(tenants_of(play.come())) if play.backlog.count else []
    left = {name: max((at for at, who in enumerate(served) if who == name), default=0) for name in names}
    for one in names:
        for other in names:
            begin, end = max(begun[one], begun[other]), min(left[one], left[other])
            if begin < end:
                got = Counter(served[begin:end])
                assert abs(got[one] - got[other]) <= 2 - (begun[one] == begun[other])


def test_a_newcomer_is_served_at_once_and_gets_nothing_for_the_time_before():
    play = Play()
    play.park(" ".join("a" * 300))
    assert tenants_of(" ".join(play.come() for _ in range(100))) == "a" * 100
    play.park(" ".join("b" * 100))
    assert tenants_of(" ".join(play.come() for _ in range(20))) == "ba" * 10


@pytest.mark.parametrize(("weight", "served"), [(1 / 3, 50), (1.0, 100), (3.0, 150)])
def test_a_tenant_that_feeds_one_task_at_a_time_gets_no_more_than_its_share(weight, served):
    play, found = Play(weights={"a": weight}), Counter()
    play.park(" ".join("b" * 300))
    for _ in range(200):
        if "a" not in play.backlog.tenants:
            play.park("a")
        found.update(tenants_of(play.come()))
    assert found["a"] == pytest.approx(served, abs=1)


def test_the_tags_of_those_who_have_nothing_are_forgotten_as_soon_as_they_say_nothing():
    play = Play()
    play.park("a b b b b")
    assert play.come(free=2) == "a1 b1"
    assert play.backlog.idle == {"a": 1.0}
    assert play.come(free=1) == "b2"
    assert play.backlog.idle == {}


# Limits


def served_at(play):
    return [(round((at - NOW / SECOND) * 1000), one.owned.item.uid.decode()) for at, one in play.starts]


def test_tokens_are_taken_when_a_task_is_handed_out_and_the_wait_is_what_it_takes():
    play = Play(Limit(2, 10))
    play.park("a a b b")
    play.drain()
    assert served_at(play) == [(0, "a1"), (0, "b1"), (100, "a2"), (200, "b2")]


def test_a_tenant_held_up_by_its_own_limit_yields_at_once_and_catches_up_nothing():
    play = Play(Limit(1, 10), tenants={"a": Limit(1, 1)})
    play.park(" ".join("ab" * 60))
    for _ in range(50):
        play.come()
        play.now += play.wait or 100_000
    by_second = [Counter(), Counter(), Counter(), Counter()]
    for at, uid in served_at(play):
        if at < 4000:
            by_second[at // 1000][uid[0]] += 1
    assert by_second == [{"a": 1, "b": 9}] * 4
    # Its limit is lifted: it has as much as the other, not what it had not before.
    play.tenants = {"a": Limit(1, 1000)}
    play.version, play.starts = "other", []
    for _ in range(21):
        play.come()
        play.now += play.wait or 100_000
    got = Counter(uid[0] for _, uid in served_at(play))
    assert abs(got["a"] - got["b"]) <= 1


def test_one_type_held_up_does_not_hold_up_another():
    play = Play(tasks={"slow": Limit(1, 1)})
    play.park("a/slow a/slow a/quick a/quick a/quick b")
    assert play.come(free=10) == "a1 b1 a3 a4 a5"
    assert play.wait == SECOND
    play.now += SECOND - 1
    assert play.come(free=10) == ""
    play.now += 1
    assert play.come(free=10) == "a2"


def test_a_sleeping_tenant_is_woken_by_a_task_that_may_start_at_once():
    play = Play(tasks={"slow": Limit(1, 1 / 3600)})
    play.park("a/slow a/slow")
    assert play.come(free=10) == "a1"
    assert play.wait == 3600 * SECOND
    assert play.park("a/quick") == [1]
    assert play.come(free=10) == "a3"
    assert play.wait == 3600 * SECOND


def test_a_sleeping_tenant_is_woken_by_a_cheaper_task_of_a_lower_rank():
    play = Play(tenants={"a": Limit(10, 1)})
    play.park("a:5*10 a:5*10")
    assert play.come(free=10) == "a1"
    play.now += 2 * SECOND
    play.park("a:6*1")
    assert play.come(free=10) == "", "it stands behind"
    play.park("a:4*1")
    assert play.come(free=10) == "a4"


def test_a_woken_tenant_has_no_credit_for_the_time_it_slept():
    play = Play(tenants={"a": Limit(1, 1)})
    play.park("a " + " ".join("b" * 100))
    assert play.come(free=1) == "a1"
    first = play.owned.pop(b"a1")
    play.park(" ".join("a" * 30))
    assert tenants_of(play.come(free=50)) == "b" * 50
    play.backlog.return_to_front(first)
    play.tenants, play.version = {}, "no limits"
    assert abs(tenants_of(play.come(free=20)).count("a") - 10) <= 1


levels = st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([0.5, 3.0, 7.25, 100.0]))


@given(st.lists(levels, min_size=1, max_size=3), st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=12))
def test_the_wait_is_honest_whatever_level_binds(limits, costs):
    queue, tenant, task = ([Limit(*one) for one in limits] + [None] * 2)[:3]
    play = Play(queue, tenants={"a": tenant}, tasks={"f": task})
    play.park(" ".join(f"a*{cost}" for cost in costs))
    for _ in costs:
        waited = 0
        while not play.come():
            wait, waited = play.wait, waited + 1
            play.now += wait - 1
            assert play.come() == "", "1 µs too early"
            assert play.wait == 1
            play.now += 1
        # Who waits for a limit of its own, too, hears of the queue's when that is over: others may be served meanwhile.
        assert waited <= min(2, len(limits))
    for name, limit in (("q:q", queue), ("tenant a ", tenant), ("task a f", task)):
        if limit is not None:
            starts = [(at, one.owned.item.cost) for at, one in play.starts]
            assert worst_excess(starts, limit) <= 1e-6 * limit.fill_rate, name


@given(st.lists(levels, min_size=3, max_size=3), st.lists(st.integers(0, 2_000_000), max_size=20))
def test_all_levels_pay_or_none(limits, moves):
    queue, tenant, task = (Limit(*one) for one in limits)
    play = Play(queue, tenants={"a": tenant}, tasks={"f": task})
    play.park(" ".join(["a", "b"] * 30))
    play.ask()
    for move in moves:
        play.now += move
        before, request = dict(play.states), play.request()
        dispatched = play.ask()
        touched = {key for key in play.states if play.states[key] != before.get(key)}
        assert touched == {level.key for one in dispatched for level in request.path_of(one.owned.lane)}


def test_a_task_whose_time_is_over_is_handed_out_for_its_end_and_costs_nothing():
    play = Play(Limit(1, 1))
    play.park("a a")
    play.come()
    play.park("a b", max_wait_us=500_000)
    play.now += SECOND
    dispatched = (*play.ask(free=4), *play.ask(free=4))
    assert [(text_of([one]), one.admitted) for one in dispatched] == [("b1", False), ("a2", True), ("a3", False)]
    assert play.states["q:q"].full_at == play.now + SECOND


@pytest.mark.parametrize(("age", "admitted"), [(999_999, True), (1_000_000, False)])
def test_the_deadline_to_the_last_tick(age, admitted):
    play = Play()
    play.park("a", max_wait_us=1_000_000)
    play.now += age
    play.ask()
    assert [one.admitted for one in play.ask()] == [admitted]


@pytest.mark.parametrize("level", ["queue", "tenant", "task"])
def test_a_task_that_can_never_start_does_not_stand_in_the_way(level):
    limits = {name: Limit(2, 0.001) if name == level else None for name in ("queue", "tenant", "task")}
    play = Play(limits["queue"], tenants={"a": limits["tenant"]}, tasks={"f": limits["task"]})
    play.park("a*3 a*2 a*3")
    play.ask(free=5)
    dispatched = play.ask(free=5)
    assert [(text_of([one]), one.admitted) for one in dispatched] == [("a1", False), ("a2", True), ("a3", False)]


def test_many_whose_time_is_over_do_not_take_slots_from_others():
    play = Play()
    play.park(" ".join("a" * 50), max_wait_us=1)
    play.now += 5
    play.park("a a")
    play.ask(free=1)
    dispatched = play.ask(free=1)
    assert len(dispatched) == 51
    assert text_of([one for one in dispatched if one.admitted]) == "a51"


def test_a_refund_goes_back_under_the_limit_that_holds_now():
    wide, narrow = Limit(9, 1), Limit(2, 100)
    level, states = Level("queue", "q:q", wide), {}
    admit([AdmissionRequest((level,), 9, (0,))], states, NOW)
    assert states["q:q"].full_at == NOW + 9 * SECOND
    refund_path((Level("queue", "q:q", narrow),), 2, states, NOW)
    assert states["q:q"].full_at == NOW + 7 * SECOND, "seven of nine are still missing"
    refund_path((level,), 100, states, NOW)
    assert states["q:q"].full_at == NOW
    states.clear()
    refund_path((level,), 1, states, NOW)
    assert states.get("q:q", EMPTY).full_at <= NOW


def test_other_limits_wake_all_at_once():
    play = Play(tenants={name: Limit(1, 0.001) for name in "abc"})
    play.park("a a b b c c")
    play.come(free=10)
    assert play.come(free=10) == ""
    play.tenants, play.version = {}, "new"
    assert sorted(play.come(free=10).split()) == ["a2", "b2", "c2"]


# What a worker does not know, and what is paused


def test_who_is_paused_sleeps_and_is_woken_by_its_end():
    play = Play(paused={"a"})
    play.park("a a b")
    assert play.come(free=5) == "b1"
    assert play.wait == PAUSED_DELAY
    play.now += PAUSED_DELAY
    assert play.come(free=5) == ""
    play.paused, play.version = set(), "resumed"
    assert play.come(free=5) == "a1 a2"


def test_a_paused_type_leaves_the_others_alone():
    play = Play(paused={"g"})
    play.park("a/g a/f a/g a/f b/g")
    assert play.come(free=5) == "a2 a4"
    assert play.backlog.blocks("b", play.now)


def test_what_a_worker_cannot_run_waits_for_one_that_can():
    play = Play(unknown={"old": {"new"}})
    play.park("a/new a/f b/new c/f")
    assert play.come("old", free=5) == "a2 c1"
    assert play.wait is None
    assert play.come("w", free=5) == "b1 a1"


def test_a_worker_that_does_not_know_all_types_puts_nobody_to_sleep_for_the_others():
    play = Play(tasks={"slow": Limit(1, 1 / 3600)}, unknown={"old": {"new"}})
    play.park("a/slow a/slow a/new")
    assert play.come("old", free=5) == "a1"
    assert play.wait == 3600 * SECOND, "that is when the type it knows may start"
    assert play.come("w", free=5) == "a3"
    play.now += 3600 * SECOND
    assert play.come("old", free=5) == "a2"


@pytest.mark.parametrize("count", [SPARE_TENANTS + 1, SPARE_TENANTS + 2, 30, MAX_TENANTS - 2])
def test_tenants_of_whom_a_worker_knows_no_type_do_not_stop_it(count):
    play = Play(unknown={"old": {"new"}})
    play.park(" ".join(f"a{'x' * number}/new" for number in range(count)))
    play.park("z/f z/f")
    assert play.come("old", free=1) == "z1"
    assert play.come("old", free=5) == "z2"
    assert play.wait is None


def test_a_worker_that_knows_nothing_of_too_many_waits_instead_of_asking_for_ever():
    play = Play(unknown={"old": {"new"}})
    play.park(" ".join(f"a{'x' * number}/new" for number in range(MAX_TENANTS + 20)))
    assert play.come("old", free=1) == ""
    assert play.wait is None
    assert len(play.come("w", free=500).split()) == MAX_TENANTS + 20


def test_it_names_those_who_may_be_next():
    play = Play()
    play.park(" ".join(name for name in "abcdefghijkl") + " a/g:3 a/g:1")
    play.ask(free=2)
    assert play.known["w"][0] == ("a", (("f", (0,)), ("g", (1, 3))))
    assert "".join(known.tenant for known in play.known["w"]) == "abcdefghijkl"[: 2 + SPARE_TENANTS]


# Turns and calls


def test_two_workers_are_told_the_same_turn_and_no_more():
    play = Play(Limit(1, 10))
    play.park(" ".join("a" * 50))
    assert play.come("w0") == "a1"
    waits = []
    for number in range(1, 8):
        assert play.come(f"w{number}") == ""
        waits.append(play.wait)
    assert waits == [100_000, 100_000, 200_000, 200_000, 300_000, 300_000, 400_000]


def test_turns_behind_a_sleeping_tenant_are_those_of_the_next_to_wake():
    play = Play(tenants={"a": Limit(1, 10), "b": Limit(1, 5), "c": Limit(1, 1)})
    play.park("a a b b c c")
    play.come("w0", free=9)
    waits = [(play.come(f"w{number}", free=9), play.wait)[1] for number in range(1, 8)]
    assert waits == [100_000, 200_000, 200_000, 1_000_000, 1_000_000, SECOND, SECOND]


def test_a_worker_that_comes_again_gives_its_turn_back():
    play = Play(Limit(1, 10))
    play.park("a a a")
    play.come("w0")
    for _ in range(3):
        assert (play.come("w1"), play.wait) == ("", 100_000)
    assert list(play.backlog.polls) == ["w1"]


def test_a_busy_worker_that_parks_calls_another_and_soon_after_none():
    play = Play()
    assert play.park("a", busy=False) == [1]
    assert play.called == 0, "it asks for itself"
    play.park("a", busy=True)
    assert play.called == 1
    play.now += NOTIFY_INTERVAL - 1
    play.park("a", busy=True)
    assert play.called == 1
    play.now += 1
    play.park("a", busy=True)
    assert play.called == 2
    play.now -= 10 * SECOND  # the clock was set back
    play.park("a", busy=True)
    assert play.called == 3


def test_nothing_is_called_for_a_message_that_was_known_or_did_not_fit():
    play = Play()
    play.park("a", busy=False)
    play.park_again([ParkedMessage(b"a1", Lane("a", "f"), b"")], busy=True)
    play.park("a", busy=True, limit=1)
    assert play.called == 0


@pytest.mark.parametrize(
    ("sooner", "called"),
    [(POLL_TOLERANCE, 0), (POLL_TOLERANCE + 1, 1)],
)
def test_nobody_is_called_while_somebody_comes_in_time(sooner, called):
    play = Play(Limit(1, 10))
    play.park("a a a")
    play.come("w0")
    play.come("w1")
    assert play.wait == 100_000
    play.called = 0
    play.now += 100_000 - sooner
    play.park("b", busy=True)
    assert play.called == called


@pytest.mark.parametrize(("late", "called"), [(POLL_GRACE, 0), (POLL_GRACE + 1, 1)])
def test_a_worker_that_misses_its_turn_keeps_nobody_from_being_called(late, called):
    play = Play(Limit(1, 10))
    play.park("a a a")
    play.come("w0")
    play.come("w1")
    play.called = 0
    play.now += 100_000 + late
    play.park("b", busy=True)
    assert play.called == called


def test_a_worker_that_takes_all_it_can_calls_another_for_the_rest():
    play = Play(Limit(5, 10))
    play.park("a " * 7)
    assert play.come("w0", free=2) == "a1 a2"
    assert (play.called, play.wait) == (1, None)
    assert play.come("w1", free=9) == "a3 a4 a5"
    assert (play.called, play.wait) == (1, 100_000)
    play.now += 100_000
    assert play.come("w0", free=1) == "a6"
    assert play.called == 1, "the other has its turn"


def test_a_worker_without_a_free_slot_when_its_turn_comes_calls_another():
    play = Play(Limit(1, 10))
    play.park("a a")
    play.come("w0")
    play.come("w1")
    play.called = 0
    play.now += 100_000
    assert play.come("w1", free=0) == ""
    assert (play.called, play.wait) == (1, None)


def test_once_a_worker_has_come_and_left_nothing_it_is_called_again_at_once():
    play = Play(tenants={"a": Limit(1, 0.1)})
    play.park("a a", busy=True)
    assert play.called == 1
    play.now += 300
    assert (play.come("w0", free=5), play.wait) == ("a1", 10 * SECOND)
    play.park("b", busy=True)
    assert play.called == 2, "else it would come for b in ten seconds"


def test_with_nothing_parked_nobody_waits_for_anything():
    play = Play(Limit(1, 1))
    assert (play.come(), play.wait, play.called) == ("", None, 0)
    play.park("a")
    play.come()
    assert play.backlog.polls == play.backlog.delayed == play.backlog.ready == play.backlog.idle == {}
    assert (play.backlog.virtual, play.backlog.count) == (0, 0)


# A fresh task


def test_a_fresh_task_never_overtakes_its_tenant_nor_anybody_who_may_start():
    play = Play(Limit(5, 10), tenants={"a": Limit(1, 1)})
    assert not play.backlog.blocks("a", play.now)
    play.park("a a a")
    assert play.backlog.blocks("b", play.now), "a may start"
    assert play.come(free=5) == "a1"
    assert play.backlog.blocks("a", play.now)
    assert not play.backlog.blocks("b", play.now), "a waits for its own limit"
    play.now += SECOND - 1
    assert not play.backlog.blocks("b", play.now)
    play.now += 1
    assert play.backlog.blocks("b", play.now)


def test_a_fresh_task_that_would_overtake_is_not_put_and_takes_nothing():
    play = Play()
    play.park("a")
    level = Level("queue", "q:q", Limit(1, 1))
    asks = [AdmissionRequest((level,), 1, (0,), backlog="q", tenant="a"), AdmissionRequest((level,), 1, (0,))]
    answers = admit(asks, play.states, play.now, lambda _, tenant: play.backlog.blocks(tenant, play.now))
    assert [(answer.admitted, answer.binding, answer.wait) for answer in answers] == [(False, None, 0), (True, None, 0)]


# Purge


def test_purged_tasks_are_gone_and_the_rest_goes_on():
    play = Play()
    play.park("a a a:1 a/g b")
    assert play.backlog.purge(Lane("a", "f", 0)) == 2
    assert play.backlog.purge(Lane("a", "f", 0)) == 0
    assert play.backlog.purge(Lane("nobody", "f", 0)) == 0
    assert play.backlog.purge(Lane("a", "h", 0)) == 0
    assert sorted(play.backlog.messages) == [b"a3", b"a4", b"b1"]
    assert play.backlog.tenants["a"].cost == 2
    assert play.come(free=9) == "a3 b1 a4"


def test_after_all_was_purged_nothing_is_remembered():
    play = Play(Limit(1, 1))
    play.park("a a a")
    play.come()
    play.come()
    assert play.backlog.polls
    play.backlog.purge(Lane("a", "f"))
    assert not play.backlog.polls
    assert not play.backlog.idle
    assert play.backlog.virtual == 0


# All of it at once


@given(st.randoms(use_true_random=False))
def test_nothing_is_lost_and_no_limit_is_exceeded_and_every_lane_keeps_its_order(chance):
    queue, slow = Limit(chance.choice([1, 3]), chance.choice([5, 50])), Limit(1, chance.choice([1, 10]))
    play = Play(queue, tenants={"a": slow}, tasks={"g": slow}, weights={"b": 3})
    for _ in range(15):
        play.park(" ".join(chance.choice(["a", "b", "c", "b/g", "c/g:1"]) for _ in range(chance.randint(0, 3))))
        play.come(chance.choice("xyz"), chance.randint(0, 3))
        play.now += chance.choice([10, 1000, 100_000, 1_000_000])
    for _ in range(3000):
        play.come("x", 1)
        if not play.backlog.count:
            break
        play.now += play.wait or 1
    assert play.backlog.count == 0
    starts = [(at, one.owned) for at, one in play.starts]
    assert len(starts) == len({owned.item.uid for _, owned in starts}) == sum(play.numbers.values())
    assert worst_excess([(at, 1.0) for at, _ in starts], queue) <= queue.fill_rate * 1e-6
    own = [(at, 1.0) for at, owned in starts if owned.lane.tenant == "a"]
    assert worst_excess(own, slow) <= 1e-5
    for lane in {owned.lane for _, owned in starts}:
        since = [owned.item.since for _, owned in starts if owned.lane == lane]
        assert all(earlier <= later for earlier, later in pairwise(since))
