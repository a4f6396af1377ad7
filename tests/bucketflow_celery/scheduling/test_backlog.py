"""Fair dispatch of parked tasks: backlog.py and dispatch.py as stories and as properties."""

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
#: A parked task, written "tenant/task:rank*cost". All but the tenant is optional. The tenant "-" is none.
TASK = re.compile(r"(?P<tenant>[^/:*]+)(/(?P<task>\w+))?(:(?P<rank>\d+))?(\*(?P<cost>[\d.]+))?")


class Simulation:
    """One queue and its workers. Dispatched tasks read "a1 b1 a2": the first task of a, the first of b, ..."""

    def __init__(self, common=None, *, tenants=(), tasks=(), weights=(), paused=(), unknown=()):  # noqa: PLR0913
        self.backlog, self.now, self.states, self.owned = Backlog("q"), NOW, {}, {}
        self.queue_path = () if common is None else (Level("queue", "q:q", common),)
        self.tenants, self.tasks, self.weights = dict(tenants), dict(tasks), dict(weights)
        self.paused, self.unknown = set(paused), {worker: set(names) for worker, names in dict(unknown).items()}
        self.numbers, self.known, self.parked_types, self.version = Counter(), {}, {}, ""
        self.notified, self.wait, self.starts = 0, None, []

    def park(self, text, *, limit=1000, busy=False, max_wait_us=0):
        messages = []
        for word in text.split():
            found = TASK.fullmatch(word)
            tenant = found["tenant"].replace("-", "")
            self.numbers[tenant] += 1
            lane = Lane(tenant, found["task"] or "f", int(found["rank"] or 0))
            uid = f"{found['tenant']}{self.numbers[tenant]}".encode()
            messages.append(ParkedMessage(uid, lane, b"message of " + uid, float(found["cost"] or 1), max_wait_us))
        return self.park_again(messages, limit=limit, busy=busy)

    def park_again(self, messages, *, limit=1000, busy=False):
        positions, notify = self.backlog.park(messages, limit, self.now, busy=busy)
        self.notified += notify
        return positions

    def request(self, worker="w", free=1):
        unknown, named = self.unknown.get(worker, ()), self.parked_types.get(worker, ())
        return DispatchRequest(
            worker,
            free,
            self.queue_path,
            tuple(
                TenantSpec(
                    known.tenant,
                    tuple(
                        TaskSpec(task, ranks, self.level("task", known.tenant, task),
                                 task in self.paused or known.tenant in self.paused)
                        for task, ranks in known.types
                        if task not in unknown
                    ),
                    self.weights.get(known.tenant, 1.0),
                    self.level("tenant", known.tenant),
                )
                for known in self.known.get(worker, ())
            ),
            tuple(task for task in named if task not in unknown),
            tuple(task for task in named if task in unknown),
        )  # fmt: skip

    def level(self, name, tenant, task=""):
        limit = self.tasks.get(task) if name == "task" else self.tenants.get(tenant)
        return limit and Level(name, f"{name} {tenant} {task}", limit)

    def poll_once(self, worker="w", free=1):
        """Poll once; return the dispatched tasks."""
        reply, notify = dispatch(
            self.backlog, self.request(worker, free), self.owned, self.states, self.now, version=self.version
        )
        self.notified += notify
        self.known[worker], self.parked_types[worker], self.wait = reply.next, reply.tasks, reply.wait
        self.unclaimed = reply.unclaimed
        self.starts += [(self.now / SECOND, one) for one in reply.dispatched if one.admitted]
        return reply.dispatched

    def poll(self, worker="w", free=1):
        """Poll as a worker does, again while the reply says at once; return the admitted tasks."""
        admitted = []
        for _ in range(200):
            admitted += [one for one in self.poll_once(worker, free - len(admitted)) if one.admitted]
            if self.wait != 0 or len(admitted) == free:
                return text_of(admitted)
        raise AssertionError(f"it polls for ever without a wait, and has {text_of(admitted)}")

    def drain(self, worker="w", most=1000):
        """Poll with one slot at the time of each reply, until nothing is left; return the admitted tasks."""
        found = []
        while self.backlog.count and len(found) < most:
            found += self.poll(worker).split()
            if self.wait is not None:
                self.now += self.wait
            elif not found:
                break
        return " ".join(found)


def text_of(dispatched):
    return " ".join(one.owned.item.uid.decode() for one in dispatched)


def tenants_of(text):
    return "".join(re.sub(r"\d", "", word) for word in text.split())


# Order

ORDER = [
    # parked, in this order;               dispatched;                     why
    ("a a a",                              "a1 a2 a3",                      "first come, first served"),
    ("a:5 a:0 a:5 a:0",                    "a2 a4 a1 a3",                   "the lower rank first"),
    ("a:255 a:3 a:20",                     "a2 a3 a1",                      "ranks are numbers"),
    ("a/f a/f a/f a/g a/g",                "a1 a4 a2 a5 a3",                "task types are served round-robin"),
    ("a/f:9 a/f:9 a/g:0 a/g:0",            "a1 a3 a2 a4",                   "a rank counts within its type"),
    ("a/f a/g a/h a/h a/g a/f",            "a1 a2 a3 a6 a5 a4",             "three types, each a FIFO"),
    ("a a a a b b",                        "a1 b1 a2 b2 a3 a4",             "tenants share equally"),
    ("b b a a",                            "a1 b1 a2 b2",                   "at the same tag the name decides"),
    ("- - a a",                            "-1 a1 -2 a2",                   "tasks without a tenant count as one"),
    ("a*3 a*3 b b b b",                    "a1 b1 b2 b3 a2 b4",             "shares are of tokens, not of tasks"),
    ("a/f*2 a/g*0.5 a/f*2 b b b b b",      "a1 b1 b2 a2 b3 a3 b4 b5",       "also among types"),
]  # fmt: skip


@pytest.mark.parametrize(("parked", "dispatched"), [row[:2] for row in ORDER], ids=[row[2] for row in ORDER])
@pytest.mark.parametrize("free", [1, 3, 100])
def test_the_order(parked, dispatched, free):
    sim, found = Simulation(), []
    assert min(sim.park(parked)) == 1
    while sim.backlog.count:
        found += sim.poll(free=free).split()
    assert " ".join(found) == dispatched
    assert sim.backlog.messages.keys() == sim.owned.keys() == {uid.encode() for uid in dispatched.split()}


def test_a_task_is_dispatched_as_it_was_parked_and_leased_to_the_worker():
    sim = Simulation()
    sim.now += 5
    sim.backlog.park(
        [ParkedMessage(b"u", Lane("a", "f", 7), b"\x00message", 1.0, 100, redelivered=True)], 10, sim.now, busy=False
    )
    sim.now += 50
    assert sim.poll_once() == ()  # the worker does not know the tenant
    assert (sim.wait, sim.known["w"]) == (0, (("a", (("f", (7,)),)),))
    (dispatched,) = sim.poll_once()
    assert (dispatched.message, dispatched.admitted) == (b"\x00message", True)
    assert dispatched.owned == LeasedTask("q", Lane("a", "f", 7), dispatched.owned.item)
    item = dispatched.owned.item
    assert (item.uid, item.since, item.deadline, item.redelivered) == (b"u", NOW + 5, NOW + 105, True)
    assert sim.owned == {b"u": dispatched.owned}


def test_tasks_parked_in_one_call_have_different_times():
    sim = Simulation()
    sim.park("a b a c")
    sim.poll(free=4)
    since = {uid: one.item.since for uid, one in sim.owned.items()}
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
    assert Simulation().park(parked, limit=limit) == positions


def test_a_message_is_parked_once_until_its_broker_has_acknowledged_it():
    sim, again = Simulation(), [ParkedMessage(b"a1", Lane("b", "g"), b"again")]
    sim.park("a")
    assert sim.park_again(again * 2) == [KNOWN, KNOWN]
    assert sim.park_again(again, limit=0) == [KNOWN], "also in a full backlog"
    assert sim.poll() == "a1"
    assert sim.park_again(again) == [KNOWN]
    del sim.backlog.messages[b"a1"]  # it has ended
    assert sim.park_again(again) == [KNOWN]
    del sim.backlog.dedup[b"a1"]
    assert sim.park_again(again) == [1]


def test_a_dispatched_task_does_not_count_in_the_backlog():
    sim = Simulation()
    assert sim.park("a a", limit=1) == [1, FULL]
    sim.poll()
    assert sim.park("a a", limit=1) == [1, FULL]


def test_returned_tasks_are_first_in_their_lanes():
    sim = Simulation()
    sim.park("a a a a:1")
    assert sim.poll(free=2) == "a1 a2"
    for uid in (b"a2", b"a1"):
        sim.backlog.return_to_front(sim.owned.pop(uid))
    assert sim.poll(free=4) == "a1 a2 a3 a4"
    sim.backlog.return_to_front(sim.owned.pop(b"a4"))
    sim.backlog.return_to_front(sim.owned.pop(b"a3"))
    assert sim.poll(free=4) == "a3 a4"


# Shares

weights = st.lists(st.sampled_from([1.0, 1.0, 2.0, 3.0, 5.0, 0.5, 1 / 3, 7.25, 100.0]), min_size=2, max_size=5)


@given(weights, st.integers(1, 60), st.integers(1, 5))
def test_tenants_are_served_in_proportion_to_their_weights_within_one_task(given, count, free):
    names = "abcde"[: len(given)]
    sim = Simulation(weights=dict(zip(names, given, strict=True)))
    for name in names:
        sim.park(" ".join([name] * 70))
    served = Counter()
    while sum(served.values()) < count:
        served.update(tenants_of(sim.poll(free=free)))
    if max(served.values()) < 70:
        # With a fluid shared by weight each tenant has w_i × v at virtual time v: each is within one task of that.
        assert max((served[name] - 1) / weight for name, weight in zip(names, given, strict=True)) <= 1e-9 + min(
            served[name] / weight for name, weight in zip(names, given, strict=True)
        )


def test_weights_of_5_3_and_1_hold_at_every_instant():
    sim = Simulation(weights={"a": 5, "b": 3, "c": 1})
    for name in "abc":
        sim.park(" ".join([name] * 600), limit=2000)
    served = Counter()
    for count in range(1, 901):
        served[tenants_of(sim.poll())] += 1
        for name, weight in sim.weights.items():
            # As a share of all tokens. Between two tenants the first round of all tenants counts, too.
            assert abs(served[name] - count * weight / 9) <= 1 + 1 / 8
    assert served == {"a": 500, "b": 300, "c": 100}


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 80)), min_size=2, max_size=6))
def test_equal_tenants_share_equally_independent_of_backlog_and_arrival_time(arrivals):
    sim, served, begun = Simulation(), [], {}
    names = "abcdef"[: len(arrivals)]
    for step in range(150):
        for name, (at, backlog) in zip(names, arrivals, strict=True):
            if at == step:
                sim.park(" ".join([name] * backlog))
                begun[name] = len(served)
        served += list(tenants_of(sim.poll())) if sim.backlog.count else []
    left = {name: max((at for at, who in enumerate(served) if who == name), default=0) for name in names}
    for one in names:
        for other in names:
            begin, end = max(begun[one], begun[other]), min(left[one], left[other])
            if begin < end:
                got = Counter(served[begin:end])
                assert abs(got[one] - got[other]) <= 2 - (begun[one] == begun[other])


def test_a_new_tenant_is_served_at_once_and_has_no_credit_for_the_time_before():
    sim = Simulation()
    sim.park(" ".join("a" * 300))
    assert tenants_of(" ".join(sim.poll() for _ in range(100))) == "a" * 100
    sim.park(" ".join("b" * 100))
    assert tenants_of(" ".join(sim.poll() for _ in range(20))) == "ba" * 10


@pytest.mark.parametrize(("weight", "served"), [(1 / 3, 50), (1.0, 100), (3.0, 150)])
def test_a_tenant_that_parks_one_task_at_a_time_gets_no_more_than_its_share(weight, served):
    sim, found = Simulation(weights={"a": weight}), Counter()
    sim.park(" ".join("b" * 300))
    for _ in range(200):
        if "a" not in sim.backlog.tenants:
            sim.park("a")
        found.update(tenants_of(sim.poll()))
    assert found["a"] == pytest.approx(served, abs=1)


def test_the_tag_of_an_idle_tenant_is_deleted_once_the_virtual_time_has_passed_it():
    sim = Simulation()
    sim.park("a b b b b")
    assert sim.poll(free=2) == "a1 b1"
    assert sim.backlog.idle == {"a": 1.0}
    assert sim.poll(free=1) == "b2"
    assert sim.backlog.idle == {}


# Limits


def served_at(sim):
    return [(round((at - NOW / SECOND) * 1000), one.owned.item.uid.decode()) for at, one in sim.starts]


def test_a_dispatch_takes_tokens_and_returns_the_wait_until_the_next():
    sim = Simulation(Limit(2, 10))
    sim.park("a a b b")
    sim.drain()
    assert served_at(sim) == [(0, "a1"), (0, "b1"), (100, "a2"), (200, "b2")]


def test_a_tenant_delayed_by_its_own_limit_yields_at_once_and_earns_no_credit():
    sim = Simulation(Limit(1, 10), tenants={"a": Limit(1, 1)})
    sim.park(" ".join("ab" * 60))
    for _ in range(50):
        sim.poll()
        sim.now += sim.wait or 100_000
    by_second = [Counter(), Counter(), Counter(), Counter()]
    for at, uid in served_at(sim):
        if at < 4000:
            by_second[at // 1000][uid[0]] += 1
    assert by_second == [{"a": 1, "b": 9}] * 4
    # Without its limit it gets as much as the other tenant, and nothing for the time before.
    sim.tenants = {"a": Limit(1, 1000)}
    sim.version, sim.starts = "other", []
    for _ in range(21):
        sim.poll()
        sim.now += sim.wait or 100_000
    got = Counter(uid[0] for _, uid in served_at(sim))
    assert abs(got["a"] - got["b"]) <= 1


def test_a_delayed_type_does_not_delay_another():
    sim = Simulation(tasks={"slow": Limit(1, 1)})
    sim.park("a/slow a/slow a/quick a/quick a/quick b")
    assert sim.poll(free=10) == "a1 b1 a3 a4 a5"
    assert sim.wait == SECOND
    sim.now += SECOND - 1
    assert sim.poll(free=10) == ""
    sim.now += 1
    assert sim.poll(free=10) == "a2"


def test_a_task_that_may_start_at_once_makes_a_delayed_tenant_ready():
    sim = Simulation(tasks={"slow": Limit(1, 1 / 3600)})
    sim.park("a/slow a/slow")
    assert sim.poll(free=10) == "a1"
    assert sim.wait == 3600 * SECOND
    assert sim.park("a/quick") == [1]
    assert sim.poll(free=10) == "a3"
    assert sim.wait == 3600 * SECOND


def test_a_cheaper_task_of_a_lower_rank_makes_a_delayed_tenant_ready():
    sim = Simulation(tenants={"a": Limit(10, 1)})
    sim.park("a:5*10 a:5*10")
    assert sim.poll(free=10) == "a1"
    sim.now += 2 * SECOND
    sim.park("a:6*1")
    assert sim.poll(free=10) == "", "it is not the head"
    sim.park("a:4*1")
    assert sim.poll(free=10) == "a4"


def test_a_tenant_has_no_credit_for_the_time_of_its_delay():
    sim = Simulation(tenants={"a": Limit(1, 1)})
    sim.park("a " + " ".join("b" * 100))
    assert sim.poll(free=1) == "a1"
    first = sim.owned.pop(b"a1")
    sim.park(" ".join("a" * 30))
    assert tenants_of(sim.poll(free=50)) == "b" * 50
    sim.backlog.return_to_front(first)
    sim.tenants, sim.version = {}, "no limits"
    assert abs(tenants_of(sim.poll(free=20)).count("a") - 10) <= 1


levels = st.tuples(st.sampled_from([1, 2, 5]), st.sampled_from([0.5, 3.0, 7.25, 100.0]))


@given(st.lists(levels, min_size=1, max_size=3), st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=1, max_size=12))
def test_the_wait_is_exact_at_whatever_level_binds(limits, costs):
    queue, tenant, task = ([Limit(*one) for one in limits] + [None] * 2)[:3]
    sim = Simulation(queue, tenants={"a": tenant}, tasks={"f": task})
    sim.park(" ".join(f"a*{cost}" for cost in costs))
    for _ in costs:
        waited = 0
        while not sim.poll():
            wait, waited = sim.wait, waited + 1
            sim.now += wait - 1
            assert sim.poll() == "", "1 µs too early"
            assert sim.wait == 1
            sim.now += 1
        # The wait for the queue's limit follows the wait for the tenant's own: others may be served meanwhile.
        assert waited <= min(2, len(limits))
    for name, limit in (("q:q", queue), ("tenant a ", tenant), ("task a f", task)):
        if limit is not None:
            starts = [(at, one.owned.item.cost) for at, one in sim.starts]
            assert worst_excess(starts, limit) <= 1e-6 * limit.fill_rate, name


@given(st.lists(levels, min_size=3, max_size=3), st.lists(st.integers(0, 2_000_000), max_size=20))
def test_all_levels_pay_or_none(limits, moves):
    queue, tenant, task = (Limit(*one) for one in limits)
    sim = Simulation(queue, tenants={"a": tenant}, tasks={"f": task})
    sim.park(" ".join(["a", "b"] * 30))
    sim.poll_once()
    for move in moves:
        sim.now += move
        before, request = dict(sim.states), sim.request()
        dispatched = sim.poll_once()
        touched = {key for key in sim.states if sim.states[key] != before.get(key)}
        assert touched == {level.key for one in dispatched for level in request.path_of(one.owned.lane)}


def test_an_expired_task_is_dispatched_without_admission_and_takes_no_tokens():
    sim = Simulation(Limit(1, 1))
    sim.park("a a")
    sim.poll()
    sim.park("a b", max_wait_us=500_000)
    sim.now += SECOND
    dispatched = (*sim.poll_once(free=4), *sim.poll_once(free=4))
    assert [(text_of([one]), one.admitted) for one in dispatched] == [("b1", False), ("a2", True), ("a3", False)]
    assert sim.states["q:q"].full_at == sim.now + SECOND


@pytest.mark.parametrize(("age", "admitted"), [(999_999, True), (1_000_000, False)])
def test_a_deadline_is_exact_to_the_last_tick(age, admitted):
    sim = Simulation()
    sim.park("a", max_wait_us=1_000_000)
    sim.now += age
    sim.poll_once()
    assert [one.admitted for one in sim.poll_once()] == [admitted]


@pytest.mark.parametrize("level", ["queue", "tenant", "task"])
def test_a_task_that_can_never_start_does_not_block_its_lane(level):
    limits = {name: Limit(2, 0.001) if name == level else None for name in ("queue", "tenant", "task")}
    sim = Simulation(limits["queue"], tenants={"a": limits["tenant"]}, tasks={"f": limits["task"]})
    sim.park("a*3 a*2 a*3")
    sim.poll_once(free=5)
    dispatched = sim.poll_once(free=5)
    assert [(text_of([one]), one.admitted) for one in dispatched] == [("a1", False), ("a2", True), ("a3", False)]


def test_expired_tasks_take_no_slots():
    sim = Simulation()
    sim.park(" ".join("a" * 50), max_wait_us=1)
    sim.now += 5
    sim.park("a a")
    sim.poll_once(free=1)
    dispatched = sim.poll_once(free=1)
    assert len(dispatched) == 51
    assert text_of([one for one in dispatched if one.admitted]) == "a51"


def test_a_refund_is_computed_under_the_stored_limit():
    wide, narrow = Limit(9, 1), Limit(2, 100)
    level, states = Level("queue", "q:q", wide), {}
    admit([AdmissionRequest((level,), 9, (0,))], states, NOW)
    assert states["q:q"].full_at == NOW + 9 * SECOND
    refund_path((Level("queue", "q:q", narrow),), 2, states, NOW)
    assert states["q:q"].full_at == NOW + 7 * SECOND, "seven of nine tokens are still taken"
    refund_path((level,), 100, states, NOW)
    assert states["q:q"].full_at == NOW
    states.clear()
    refund_path((level,), 1, states, NOW)
    assert states.get("q:q", EMPTY).full_at <= NOW


def test_new_limits_make_all_delayed_tenants_ready():
    sim = Simulation(tenants={name: Limit(1, 0.001) for name in "abc"})
    sim.park("a a b b c c")
    sim.poll(free=10)
    assert sim.poll(free=10) == ""
    sim.tenants, sim.version = {}, "new"
    assert sorted(sim.poll(free=10).split()) == ["a2", "b2", "c2"]


# Pauses, and task types that a worker does not know


def test_a_paused_tenant_is_delayed_until_it_is_resumed():
    sim = Simulation(paused={"a"})
    sim.park("a a b")
    assert sim.poll(free=5) == "b1"
    assert sim.wait == PAUSED_DELAY
    sim.now += PAUSED_DELAY
    assert sim.poll(free=5) == ""
    sim.paused, sim.version = set(), "resumed"
    assert sim.poll(free=5) == "a1 a2"


def test_a_paused_type_does_not_delay_another():
    sim = Simulation(paused={"g"})
    sim.park("a/g a/f a/g a/f b/g")
    assert sim.poll(free=5) == "a2 a4"
    assert sim.backlog.blocks("b", sim.now)


def test_a_task_type_that_a_worker_cannot_run_waits_for_one_that_can():
    sim = Simulation(unknown={"old": {"new"}})
    sim.park("a/new a/f b/new c/f")
    assert sim.poll("old", free=5) == "a2 c1"
    assert sim.wait is None
    assert sim.poll("w", free=5) == "b1 a1"


def test_a_worker_that_does_not_know_all_types_delays_no_tenant_for_others():
    sim = Simulation(tasks={"slow": Limit(1, 1 / 3600)}, unknown={"old": {"new"}})
    sim.park("a/slow a/slow a/new")
    assert sim.poll("old", free=5) == "a1"
    assert sim.wait == 3600 * SECOND, "then the type that it knows may start"
    assert sim.poll("w", free=5) == "a3"
    sim.now += 3600 * SECOND
    assert sim.poll("old", free=5) == "a2"


@pytest.mark.parametrize("count", [SPARE_TENANTS + 1, SPARE_TENANTS + 2, 30, MAX_TENANTS - 2, 5 * MAX_TENANTS])
def test_tasks_that_a_worker_can_run_flow_whatever_else_is_parked(count):
    sim = Simulation(unknown={"old": {"new"}})
    sim.park(" ".join(f"a{'x' * number}/new" for number in range(count)))
    sim.park("z/f z/f")
    assert sim.poll("old", free=1) == "z1"
    assert sim.poll("old", free=5) == "z2"
    assert sim.wait is None


def test_a_worker_that_can_run_no_parked_task_waits_instead_of_polling_for_ever():
    sim = Simulation(unknown={"old": {"new"}})
    sim.park(" ".join(f"a{'x' * number}/new" for number in range(MAX_TENANTS + 20)))
    assert sim.poll("old", free=1) == ""
    assert sim.wait is None
    assert len(sim.poll("w", free=500).split()) == MAX_TENANTS + 20


def test_task_types_that_no_live_worker_can_run_are_named():
    sim = Simulation(unknown={"old": {"new", "newer"}})
    sim.park("a/new a/new a/f b/newer b/newer c/f c/f")
    sim.poll("old")
    assert sim.unclaimed == ("new", "newer")
    assert sim.poll_once("w2") == ()
    assert sim.unclaimed == (), "it has yet to say what it can run"
    sim.poll("w")
    sim.poll("old")
    assert sim.unclaimed == ()
    assert sim.backlog.unclaimed(lambda worker: worker == "old") == ["new", "newer"], "after the other worker has gone"


def test_a_task_that_was_dispatched_and_has_not_started_costs_its_tenant_no_turn():
    sim = Simulation()
    sim.park("a a a a b b")
    for number in (1, 2, 3):
        assert sim.poll() == f"a{number}"
        sim.backlog.refund_turn("a", 1.0)
    assert sim.poll(free=3) == "a4 b1 b2"


def test_a_reply_names_the_tenants_that_may_be_next():
    sim = Simulation()
    sim.park(" ".join(name for name in "abcdefghijkl") + " a/g:3 a/g:1")
    sim.poll_once(free=2)
    assert sim.known["w"][0] == ("a", (("f", (0,)), ("g", (1, 3))))
    assert "".join(known.tenant for known in sim.known["w"]) == "abcdefghijkl"[: 2 + SPARE_TENANTS]


# Polls and notifications


def test_two_workers_poll_for_the_same_start_time_and_no_more():
    sim = Simulation(Limit(1, 10))
    sim.park(" ".join("a" * 50))
    assert sim.poll("w0") == "a1"
    waits = []
    for number in range(1, 8):
        assert sim.poll(f"w{number}") == ""
        waits.append(sim.wait)
    assert waits == [100_000, 100_000, 200_000, 200_000, 300_000, 300_000, 400_000]


def test_later_polls_are_spread_over_the_times_at_which_delayed_tenants_become_ready():
    sim = Simulation(tenants={"a": Limit(1, 10), "b": Limit(1, 5), "c": Limit(1, 1)})
    sim.park("a a b b c c")
    sim.poll("w0", free=9)
    waits = [(sim.poll(f"w{number}", free=9), sim.wait)[1] for number in range(1, 8)]
    assert waits == [100_000, 200_000, 200_000, 1_000_000, 1_000_000, SECOND, SECOND]


def test_a_poll_replaces_the_expected_poll_of_its_worker():
    sim = Simulation(Limit(1, 10))
    sim.park("a a a")
    sim.poll("w0")
    for _ in range(3):
        assert (sim.poll("w1"), sim.wait) == ("", 100_000)
    assert list(sim.backlog.polls) == ["w1"]


def test_a_busy_worker_that_parks_notifies_others_once_an_interval():
    sim = Simulation()
    assert sim.park("a", busy=False) == [1]
    assert sim.notified == 0, "it polls itself"
    sim.park("a", busy=True)
    assert sim.notified == 1
    sim.now += NOTIFY_INTERVAL - 1
    sim.park("a", busy=True)
    assert sim.notified == 1
    sim.now += 1
    sim.park("a", busy=True)
    assert sim.notified == 2
    sim.now -= 10 * SECOND  # the clock steps back
    sim.park("a", busy=True)
    assert sim.notified == 3


def test_a_message_that_is_not_stored_causes_no_notification():
    sim = Simulation()
    sim.park("a", busy=False)
    sim.park_again([ParkedMessage(b"a1", Lane("a", "f"), b"")], busy=True)
    sim.park("a", busy=True, limit=1)
    assert sim.notified == 0


@pytest.mark.parametrize(
    ("sooner", "notified"),
    [(POLL_TOLERANCE, 0), (POLL_TOLERANCE + 1, 1)],
)
def test_there_is_no_notification_while_a_poll_is_expected_in_time(sooner, notified):
    sim = Simulation(Limit(1, 10))
    sim.park("a a a")
    sim.poll("w0")
    sim.poll("w1")
    assert sim.wait == 100_000
    sim.notified = 0
    sim.now += 100_000 - sooner
    sim.park("b", busy=True)
    assert sim.notified == notified


@pytest.mark.parametrize(("late", "notified"), [(POLL_GRACE, 0), (POLL_GRACE + 1, 1)])
def test_a_missed_poll_does_not_suppress_a_notification(late, notified):
    sim = Simulation(Limit(1, 10))
    sim.park("a a a")
    sim.poll("w0")
    sim.poll("w1")
    sim.notified = 0
    sim.now += 100_000 + late
    sim.park("b", busy=True)
    assert sim.notified == notified


def test_a_worker_whose_slots_run_out_notifies_others_of_the_rest():
    sim = Simulation(Limit(5, 10))
    sim.park("a " * 7)
    assert sim.poll("w0", free=2) == "a1 a2"
    assert (sim.notified, sim.wait) == (1, None)
    assert sim.poll("w1", free=9) == "a3 a4 a5"
    assert (sim.notified, sim.wait) == (1, 100_000)
    sim.now += 100_000
    assert sim.poll("w0", free=1) == "a6"
    assert sim.notified == 1, "a poll of the other is expected"


def test_a_poll_without_a_free_slot_notifies_others():
    sim = Simulation(Limit(1, 10))
    sim.park("a a")
    sim.poll("w0")
    sim.poll("w1")
    sim.notified = 0
    sim.now += 100_000
    assert sim.poll("w1", free=0) == ""
    assert (sim.notified, sim.wait) == (1, None)


def test_after_a_poll_that_left_nothing_the_next_notification_is_sent_at_once():
    sim = Simulation(tenants={"a": Limit(1, 0.1)})
    sim.park("a a", busy=True)
    assert sim.notified == 1
    sim.now += 300
    assert (sim.poll("w0", free=5), sim.wait) == ("a1", 10 * SECOND)
    sim.park("b", busy=True)
    assert sim.notified == 2, "else it would poll for b in ten seconds"


def test_an_empty_backlog_keeps_no_state():
    sim = Simulation(Limit(1, 1))
    assert (sim.poll(), sim.wait, sim.notified) == ("", None, 0)
    sim.park("a")
    sim.poll()
    assert sim.backlog.polls == sim.backlog.delayed == sim.backlog.idle == sim.backlog.types == {}
    assert not sim.backlog.ready
    assert (sim.backlog.virtual, sim.backlog.count) == (0, 0)


# A fresh task


def test_a_fresh_task_overtakes_neither_its_tenant_nor_a_ready_one():
    sim = Simulation(Limit(5, 10), tenants={"a": Limit(1, 1)})
    assert not sim.backlog.blocks("a", sim.now)
    sim.park("a a a")
    assert sim.backlog.blocks("b", sim.now), "a may start"
    assert sim.poll(free=5) == "a1"
    assert sim.backlog.blocks("a", sim.now)
    assert not sim.backlog.blocks("b", sim.now), "a waits for its own limit"
    sim.now += SECOND - 1
    assert not sim.backlog.blocks("b", sim.now)
    sim.now += 1
    assert sim.backlog.blocks("b", sim.now)


def test_a_fresh_task_that_would_overtake_is_skipped_and_takes_no_tokens():
    sim = Simulation()
    sim.park("a")
    level = Level("queue", "q:q", Limit(1, 1))
    requests = [AdmissionRequest((level,), 1, (0,), backlog="q", tenant="a"), AdmissionRequest((level,), 1, (0,))]
    decisions = admit(requests, sim.states, sim.now, lambda _, tenant: sim.backlog.blocks(tenant, sim.now))
    assert [(decision.admitted, decision.binding, decision.wait) for decision in decisions] == [
        (False, None, 0),
        (True, None, 0),
    ]


# Purge


def test_a_purge_deletes_one_lane_and_leaves_the_rest():
    sim = Simulation()
    sim.park("a a a:1 a/g b")
    assert sim.backlog.purge(Lane("a", "f", 0)) == 2
    assert sim.backlog.purge(Lane("a", "f", 0)) == 0
    assert sim.backlog.purge(Lane("unknown", "f", 0)) == 0
    assert sim.backlog.purge(Lane("a", "h", 0)) == 0
    assert sorted(sim.backlog.messages) == [b"a3", b"a4", b"b1"]
    assert sim.backlog.tenants["a"].cost == 2
    assert sim.poll(free=9) == "a3 b1 a4"


def test_a_purge_of_the_last_lane_resets_the_backlog():
    sim = Simulation(Limit(1, 1))
    sim.park("a a a")
    sim.poll()
    sim.poll()
    assert sim.backlog.polls
    sim.backlog.purge(Lane("a", "f"))
    assert not sim.backlog.polls
    assert not sim.backlog.idle
    assert sim.backlog.virtual == 0


# All properties together


@given(st.randoms(use_true_random=False))
def test_no_task_is_lost_no_limit_is_exceeded_and_every_lane_keeps_its_order(chance):
    queue, slow = Limit(chance.choice([1, 3]), chance.choice([5, 50])), Limit(1, chance.choice([1, 10]))
    sim = Simulation(queue, tenants={"a": slow}, tasks={"g": slow}, weights={"b": 3})
    for _ in range(15):
        sim.park(" ".join(chance.choice(["a", "b", "c", "b/g", "c/g:1"]) for _ in range(chance.randint(0, 3))))
        sim.poll(chance.choice("xyz"), chance.randint(0, 3))
        sim.now += chance.choice([10, 1000, 100_000, 1_000_000])
    for _ in range(3000):
        sim.poll("x", 1)
        if not sim.backlog.count:
            break
        sim.now += sim.wait or 1
    assert sim.backlog.count == 0
    starts = [(at, one.owned) for at, one in sim.starts]
    assert len(starts) == len({owned.item.uid for _, owned in starts}) == sum(sim.numbers.values())
    assert worst_excess([(at, 1.0) for at, _ in starts], queue) <= queue.fill_rate * 1e-6
    own = [(at, 1.0) for at, owned in starts if owned.lane.tenant == "a"]
    assert worst_excess(own, slow) <= 1e-5
    for lane in {owned.lane for _, owned in starts}:
        since = [owned.item.since for _, owned in starts if owned.lane == lane]
        assert all(earlier <= later for earlier, later in pairwise(since))
