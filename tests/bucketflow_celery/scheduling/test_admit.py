"""Admission control: admit.py as stories and as properties."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bucketflow.algorithm import gcra
from bucketflow.limit import SECOND
from bucketflow.testing import worst_excess
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.admit import (
    EMPTY,
    LATE,
    NO_DEADLINE,
    RESERVATION_GRACE,
    RESERVATION_TTL,
    WAIVER,
    AdmissionDecision,
    AdmissionRequest,
    LevelState,
    admit,
    cancel_reservation,
)

NOW = 1_000 * SECOND
MS = 1000

ALL = Level("all", "all", Limit(10, 100))
QUEUE = Level("queue", "q:q", Limit(3, 10))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
TASK = Level("task", "q:q/t:a/f:f", Limit(2, 2))


def request(*path, cost=1.0, reservations=(), max_wait_us=NO_DEADLINE):
    return AdmissionRequest(path, cost, reservations or (0,) * len(path), max_wait_us)


def state_of(level, full_at, reserved_until=0.0):
    return LevelState(full_at, reserved_until, level.limit.capacity, level.limit.fill_rate)


def use_up(level, states, now=NOW, cost=None):
    states[level.key] = state_of(level, gcra.take(level.limit, 0.0, now, cost or level.limit.capacity))


def tokens(level, states, now):
    return gcra.tokens_at(level.limit, states.get(level.key, EMPTY).full_at, now)


# Stories: one bucket of 3 tokens, 10 a second; times in ms

STORY = [
    # at, cost, reservation, admitted, wait, new reservation, tokens left
    (0, 2, None, True, 0, None, 1),  # an unused level is full
    (0, 2, None, False, 100, 100, 1),  # a refusal takes nothing, and reserves a start time
    (0, 1, None, False, 200, 200, 1),  # no overtaking, though there is a token for this one
    (50, 1, None, False, 250, 300, 1.5),
    (99, 2, 100, False, 1, 100, 1.99),  # too early: the reservation stays the same
    (100, 2, 100, True, 0, None, 0),  # exactly at its start time
    (200, 1, 200, True, 0, None, 0),
    (250, 1, None, False, 150, 400, 0.5),  # behind the reservation at 300
    (320, 1, 300, True, 0, None, 0.2),  # 20 ms late loses nothing
    (400, 1, 400, True, 0, None, 0),
    (450, 1, None, False, 50, 500, 0.5),
    (5_000, 1, None, True, 0, None, 2),  # the bucket was full for 2 s: reservations are dropped
    (5_000, 3, None, False, 100, 5_100, 2),
    (5_100, 3, 5_100, True, 0, None, 0),
]


def test_the_story_of_a_queue():
    states = {}
    for at, cost, start, admitted, wait, new_start, left in STORY:
        now = NOW + at * MS
        reservation = 0 if start is None else NOW + start * MS
        (decision,) = admit([request(QUEUE, cost=cost, reservations=(reservation,))], states, now)
        decided = at, decision.admitted, decision.wait, decision.reservations
        reservations = (reservation,) if admitted else (NOW + new_start * MS,)
        assert decided == (at, admitted, wait * MS, reservations)
        assert tokens(QUEUE, states, now) == pytest.approx(left), at


def test_a_task_takes_tokens_at_every_level_or_at_none():
    states = {}
    first, second = admit([request(ALL, QUEUE, TENANT, cost=1)] * 2, states, NOW)
    assert first.admitted
    assert [tokens(level, states, NOW) for level in (ALL, QUEUE, TENANT)] == [9, 2, 0]
    assert second == AdmissionDecision(admitted=False, binding=2, wait=SECOND, reservations=(0, 0, NOW + SECOND))
    assert [tokens(level, states, NOW) for level in (ALL, QUEUE, TENANT)] == [9, 2, 0]


def test_the_level_with_the_longest_wait_binds():
    states = {}
    for level in (ALL, QUEUE, TENANT, TASK):
        use_up(level, states)
    assert admit([request(ALL, QUEUE, TENANT, TASK)], states, NOW)[0].binding == 2
    assert admit([request(ALL, QUEUE)], states, NOW)[0].binding == 1


@pytest.mark.parametrize(
    ("exhausted", "reserved", "waived"),
    [
        ([QUEUE], QUEUE, []),
        ([ALL, QUEUE], QUEUE, []),
        ([TENANT], TENANT, []),
        ([QUEUE, TENANT], TENANT, []),  # a task that waits for its tenant must not block its queue
        ([ALL, QUEUE, TENANT, TASK], TENANT, [TASK]),  # nor reserve at its task type, which could start long before
        ([QUEUE, TASK], TASK, []),
    ],
)
def test_only_the_binding_level_grants_a_reservation_and_the_others_that_do_not_block_a_queue_a_waiver(
    exhausted, reserved, waived
):
    states = {}
    for level in exhausted:
        use_up(level, states)
    path = (ALL, QUEUE, TENANT, TASK)
    (decision,) = admit([request(*path)], states, NOW)
    waits = {level: start - NOW for level, start in zip(path, decision.reservations, strict=True) if start}
    assert waits == {reserved: decision.wait} | dict.fromkeys(waived, decision.wait - WAIVER)
    assert [level for level in path if states.get(level.key, EMPTY).reserved_until] == [reserved]


# Reservations


def test_a_task_at_its_start_time_must_still_find_tokens():
    states = {}
    use_up(TENANT, states)
    (decision,) = admit([request(TENANT, reservations=(NOW,))], states, NOW)
    assert decision == AdmissionDecision(admitted=False, binding=0, wait=SECOND, reservations=(NOW,))


def test_a_task_at_its_start_time_gets_no_second_reservation():
    states = {}
    use_up(TENANT, states)
    admit([request(TENANT), request(TENANT)], states, NOW)
    reserved_until = states[TENANT.key].reserved_until
    admit([request(TENANT, reservations=(NOW + SECOND,))], states, NOW + SECOND // 2)
    assert states[TENANT.key].reserved_until == reserved_until


@pytest.mark.parametrize("ahead", [1, 3600 * SECOND, NO_DEADLINE - NOW - 1])
def test_a_reservation_that_the_level_did_not_grant_is_replaced(ahead):
    # It was granted at a slower rate that was raised since, by another clock, or not at all.
    states = {TENANT.key: state_of(TENANT, NOW + SECOND, NOW + SECOND)}
    end = NOW + SECOND
    (decision,) = admit([request(TENANT, reservations=(end + ahead,))], states, NOW)
    assert (decision.wait, decision.reservations) == (2 * SECOND, (end + SECOND,))
    (kept,) = admit([request(TENANT, reservations=decision.reservations)], states, NOW)
    assert kept.reservations == decision.reservations


def test_a_reservation_that_the_level_did_not_grant_delays_no_task_that_finds_tokens():
    (decision,) = admit([request(TENANT, reservations=(NOW + 3600 * SECOND,))], {}, NOW)
    assert decision.admitted


@pytest.mark.parametrize(("late", "admitted"), [(0, True), (RESERVATION_GRACE, True), (RESERVATION_GRACE + 1, False)])
def test_a_reservation_lapses_after_its_grace(late, admitted):
    start, now = NOW, NOW + late
    last = now + 5 * SECOND  # there are many reservations
    states = {TENANT.key: state_of(TENANT, float(now), float(last))}
    (decision,) = admit([request(TENANT, reservations=(start,))], states, now)
    assert decision.admitted == admitted
    assert admitted or decision.reservations == (last + SECOND,)


@pytest.mark.parametrize(("full_for", "admitted"), [(RESERVATION_TTL - 1, False), (RESERVATION_TTL, True)])
def test_reservations_that_no_task_uses_are_dropped_after_their_time_to_live(full_for, admitted):
    states = {TENANT.key: state_of(TENANT, float(NOW), NOW + 3600.0 * SECOND)}
    (decision,) = admit([request(TENANT)], states, NOW + full_for)
    assert decision.admitted == admitted
    assert (states[TENANT.key].reserved_until == 0) == admitted


# Deadlines and cancellation


@pytest.mark.parametrize("waiting", [1, 20, 500])
@pytest.mark.parametrize("capacity", [1, 10])
def test_a_task_waits_for_reservations_that_no_task_uses_until_they_are_dropped_and_no_longer(capacity, waiting):
    level = Level("tenant", "q:q/t:a", Limit(capacity, 1))
    states = {}
    use_up(level, states)
    admit([request(level)] * waiting, states, NOW)  # their tasks were purged
    full_at = NOW + capacity * SECOND
    just_full, late = full_at + LATE - 1, full_at + LATE
    behind_them = max(0, NOW + (waiting + 1) * SECOND - just_full)
    assert admit([request(level)], dict(states), just_full)[0].wait == behind_them
    (decision,) = admit([request(level)], states, late)
    expected = full_at + RESERVATION_TTL - late
    assert decision.wait <= expected
    assert admit([request(level, reservations=decision.reservations)], states, late + decision.wait)[0].admitted


@pytest.mark.parametrize(("max_wait_us", "reserved"), [(SECOND - 1, False), (SECOND, True), (NO_DEADLINE, True)])
def test_a_task_that_would_miss_its_deadline_reserves_nothing(max_wait_us, reserved):
    states = {}
    use_up(TENANT, states)
    (decision,) = admit([request(TENANT, max_wait_us=max_wait_us)], states, NOW)
    assert (decision.wait, decision.binding) == (SECOND, 0)
    assert decision.reservations == ((NOW + SECOND,) if reserved else (0,))
    assert bool(states[TENANT.key].reserved_until) == reserved


def test_a_cancelled_reservation_goes_to_the_next_task():
    states = {}
    use_up(TENANT, states)
    first, second = admit([request(TENANT)] * 2, states, NOW)
    cancel_reservation(request(TENANT, reservations=second.reservations), states, NOW)
    (third,) = admit([request(TENANT)], states, NOW)
    assert third.reservations == second.reservations
    assert first.reservations != second.reservations


def test_after_the_only_reservation_is_cancelled_the_next_task_gets_the_same():
    states = {}
    use_up(TENANT, states)
    (only,) = admit([request(TENANT)], states, NOW)
    cancel_reservation(request(TENANT, reservations=only.reservations), states, NOW)
    assert admit([request(TENANT)], states, NOW)[0].reservations == only.reservations


@pytest.mark.parametrize("reservation", [0, NOW - SECOND, NOW])
def test_cancelling_a_reservation_that_is_not_ahead_changes_nothing(reservation):
    states = {TENANT.key: state_of(TENANT, NOW + 9.0 * SECOND, NOW + 9.0 * SECOND)}
    before = dict(states)
    cancel_reservation(request(TENANT, reservations=(reservation,)), states, NOW)
    assert states == before


# A batch


def test_a_batch_skips_the_rest_of_an_exhausted_queue():
    decisions = admit([request(QUEUE)] * 6, {}, NOW)
    assert [decision.admitted for decision in decisions] == [True] * 3 + [False] * 3
    assert [decision.binding for decision in decisions] == [None] * 3 + [0, None, None]
    assert [decision.reservations for decision in decisions[3:]] == [(NOW + 100 * MS,), (0,), (0,)]


def test_a_batch_goes_on_past_an_exhausted_tenant():
    other = Level("tenant", "q:q/t:b", Limit(1, 1))
    decisions = admit(
        [request(QUEUE, TENANT), request(QUEUE, TENANT), request(QUEUE, TENANT), request(QUEUE, other)], {}, NOW
    )
    assert [decision.admitted for decision in decisions] == [True, False, False, True]
    assert [decision.reservations[1] - NOW for decision in decisions[1:3]] == [SECOND, 2 * SECOND]


def test_a_batch_goes_on_in_another_queue():
    other = Level("queue", "q:r", Limit(1, 1))
    decisions = admit([request(QUEUE, cost=3), request(QUEUE), request(other), request(QUEUE)], {}, NOW)
    assert [(decision.admitted, decision.binding) for decision in decisions] == [
        (True, None),
        (False, 0),
        (True, None),
        (False, None),
    ]


def test_an_empty_batch_has_no_decisions():
    assert admit([], {}, NOW) == []


# Properties

rates = st.sampled_from([0.1, 0.5, 1, 3, 10, 1000])
limits = st.builds(Limit, st.integers(1, 20), rates)
paths = st.tuples(limits, limits, limits, limits, st.lists(st.booleans(), min_size=4, max_size=4).filter(any)).map(
    lambda drawn: tuple(
        Level(name, name, limit)
        for name, limit, on in zip(("all", "queue", "tenant", "task"), drawn[:4], drawn[4], strict=True)
        if on
    )
)
shares = st.sampled_from([0.1, 0.5, 1.0])


def cost_of(path, share):
    return share * min(level.limit.capacity for level in path)


@settings(max_examples=150, deadline=None)
@given(
    paths,
    st.lists(st.tuples(st.integers(0, 5 * SECOND), shares, st.integers(0, 9)), max_size=80),
)
def test_no_sequence_of_requests_and_reservations_exceeds_a_limit(path, steps):
    states, now, starts, kept = {}, NOW, [], {}
    for move, share, who in steps:
        now += move
        cost = cost_of(path, share)
        (decision,) = admit([request(*path, cost=cost, reservations=kept.get(who, ()))], states, now)
        kept[who] = () if decision.admitted else decision.reservations
        if decision.admitted:
            starts.append((now / SECOND, cost))
        for level in path:
            assert 0 <= tokens(level, states, now) <= level.limit.capacity
    for level in path:
        if starts:
            assert worst_excess(starts, level.limit) < 1e-6 * (1 + level.limit.fill_rate)


@settings(max_examples=50, deadline=None)
@given(limits, st.integers(1, 200), st.integers(0, 2 * RESERVATION_GRACE))
def test_many_late_reservations_at_once_admit_no_more_than_the_capacity(limit, waiting, late):
    level, states = Level("tenant", "t", limit), {}
    use_up(level, states)
    decisions = admit([request(level)] * waiting, states, NOW)
    now = max(decision.reservations[0] for decision in decisions) + late
    again = admit([request(level, reservations=decision.reservations) for decision in decisions], states, now)
    assert sum(decision.admitted for decision in again) <= limit.capacity


@settings(max_examples=100, deadline=None)
@given(paths, st.lists(st.tuples(st.integers(0, SECOND), shares), max_size=30))
def test_a_refusal_takes_no_tokens_and_its_wait_is_exact(path, steps):
    states, now = {}, NOW
    for move, share in steps:
        now += move
        one = request(*path, cost=cost_of(path, share))
        before = {level: tokens(level, states, now) for level in path}
        (decision,) = admit([one], states, now)
        if decision.admitted:
            continue
        assert {level: tokens(level, states, now) for level in path} == before
        assert decision.wait == max(decision.reservations) - now or path[decision.binding].name in ("all", "queue")
        later = replace(one, reservations=decision.reservations)
        # Absent other tasks it is admitted exactly then, and not 1 µs earlier.
        assert not admit([later], dict(states), now + decision.wait - 1)[0].admitted
        if all(
            start or wait_is_over(level, states, now + decision.wait)
            for level, start in zip(path, decision.reservations, strict=True)
        ):
            assert admit([later], dict(states), now + decision.wait)[0].admitted


def wait_is_over(level, states, now):
    state = states.get(level.key, EMPTY)
    return state.reserved_until + level.limit.span <= now


@settings(max_examples=100, deadline=None)
@given(
    limits,
    st.lists(st.tuples(st.integers(0, 2 * SECOND), shares), min_size=1, max_size=60),
)
def test_tasks_start_in_order_retry_at_most_once_and_leave_no_token_unused(limit, arrivals):
    """A refused task retries exactly at its start time. Costs differ."""
    level, states = Level("tenant", "t", limit), {}
    number = itertools.count()
    events, now = [], NOW
    for move, share in arrivals:
        now += move
        heapq.heappush(events, (now, next(number), request(level, cost=share * limit.capacity), now))
    admitted, returned = [], []
    while events:
        now, who, one, came = heapq.heappop(events)
        (decision,) = admit([one], states, now)
        if decision.admitted:
            admitted.append((now, who, one.cost))
            continue
        assert one.reservations == (0,), "it retried at its start time, and was refused again"
        returned.append(who)
        heapq.heappush(events, (decision.reservations[0], who, replace(one, reservations=decision.reservations), came))
    assert [who for _, who, _ in admitted] == sorted(who for _, who, _ in admitted)
    assert len(admitted) == len(arrivals)
    # As a FIFO in front of a bucket: each task starts once the previous one has started and its tokens are earned.
    full_at, clock = 0.0, 0
    came = {who: at for who, at in enumerate(itertools.accumulate((move for move, _ in arrivals), initial=NOW)) if who}
    for at, who, cost in admitted:
        clock = max(clock, came[who + 1])
        clock += gcra.wait_for(limit, full_at, clock, cost)
        full_at = gcra.take(limit, full_at, clock, cost)
        assert at == pytest.approx(clock, abs=len(arrivals)), "µs: each start time is rounded up"


@settings(max_examples=100, deadline=None)
@given(paths, st.lists(st.tuples(st.integers(0, 4 * SECOND), shares, st.integers(0, 5)), max_size=60))
def test_a_level_that_has_expired_decides_as_one_that_is_still_stored(path, steps):
    """The key of a level expires once its bucket is full and its reservations are dropped."""
    stored, expiring, now, reservations = {}, {}, NOW, {}
    for move, share, who in steps:
        now += move
        for key, state in list(expiring.items()):
            if max(state.full_at, state.reserved_until) + RESERVATION_TTL <= now:
                del expiring[key]
        one = request(*path, cost=cost_of(path, share), reservations=reservations.get(who, ()))
        (decision,) = admit([one], stored, now)
        assert admit([one], expiring, now) == [decision]
        reservations[who] = () if decision.admitted else decision.reservations


@given(paths, st.lists(st.tuples(st.integers(-5 * SECOND, 5 * SECOND), shares), max_size=30))
def test_a_clock_that_steps_back_earns_nothing_and_never_raises(path, steps):
    states, now = {}, NOW
    for move, share in steps:
        before = {level: tokens(level, states, now) for level in path}
        now = max(1, now + move)
        if move <= 0:
            assert all(tokens(level, states, now) <= before[level] for level in path)
        admit([request(*path, cost=cost_of(path, share))], states, now)


# Limits that change


@pytest.mark.parametrize(
    ("old", "new", "taken", "wait"),
    [  # tokens taken before the change; seconds until one token is there after it
        (Limit(1, 1 / 3600), Limit(1, 100), 1, 0.01),  # an empty bucket fills at the new rate
        (Limit(1000, 10), Limit(10, 10), 1000, 0.1),  # and is no emptier than empty
        (Limit(10, 10), Limit(10, 1), 10, 1),
        (Limit(10, 10), Limit(20, 10), 10, 0),  # what was taken stays taken, the rest is there
        (Limit(10, 10), Limit(10, 10), 10, 0.1),
    ],
)
def test_under_new_limits_what_was_taken_stays_taken_up_to_an_empty_bucket(old, new, taken, wait):
    states = {}
    before, after = Level("tenant", "t", old), Level("tenant", "t", new)
    assert admit([request(before, cost=taken)], states, NOW)[0].admitted
    assert admit([request(after)], states, NOW)[0].wait == pytest.approx(wait * SECOND, abs=1)


mixed_limits = st.lists(
    st.builds(Limit, st.sampled_from([1.0, 2.0, 20.0, 30.0]), st.sampled_from([0.5, 3.0, 20.0, 30.0])),
    min_size=2,
    max_size=4,
)


@settings(max_examples=300, deadline=None)
@given(
    mixed_limits,
    st.lists(
        st.tuples(st.sampled_from([0, 1000, SECOND // 20, SECOND // 3, 5 * SECOND]), st.integers(0, 3), shares),
        max_size=200,
    ),
)
def test_workers_that_differ_in_a_limit_start_no_more_than_the_largest_allows(limits, steps):
    states, now, starts = {}, NOW, []
    for move, worker, share in steps:
        now += move
        level = Level("queue", "q:q", limits[worker % len(limits)])
        cost = cost_of([level], share)
        while admit([request(level, cost=cost, max_wait_us=-1)], states, now)[0].admitted:
            starts.append((now / SECOND, cost))
        assert 0 <= tokens(level, states, now) <= level.limit.capacity
    largest = Limit(max(limit.capacity for limit in limits), max(limit.fill_rate for limit in limits))
    if starts:
        assert worst_excess(starts, largest) < 1e-6 * (1 + largest.fill_rate)


def test_a_worker_with_the_larger_limit_gets_no_tokens_back_because_another_asked_under_the_smaller_one():
    states = {}
    small, large = (Level("queue", "q:q", Limit(capacity, capacity)) for capacity in (20, 30))
    assert all(decision.admitted for decision in admit([request(large)] * 30, states, NOW))
    assert not admit([request(small)], states, NOW)[0].admitted
    assert not admit([request(large)], states, NOW)[0].admitted
    assert admit([request(large)], states, NOW + SECOND // 2)[0].admitted


def test_under_new_limits_the_tasks_ahead_take_as_long_as_at_the_new_rate():
    states = {}
    slow, fast = Level("tenant", "t", Limit(1, 1)), Level("tenant", "t", Limit(1, 100))
    admit([request(slow)] * 91, states, NOW)
    assert admit([request(fast)], states, NOW)[0].wait == pytest.approx(0.91 * SECOND, abs=1)


def test_under_a_faster_limit_an_empty_bucket_fills_however_often_tasks_are_refused():
    slow, fast = (Level("queue", "q:q", Limit(5, rate)) for rate in (1 / 3600, 50))
    states, now = {}, 10**12
    assert all(decision.admitted for decision in admit([AdmissionRequest((slow,), 1, (0,))] * 5, states, now))
    admitted = 0
    for _ in range(200):  # for a second, requests that reserve nothing
        now += 5_000
        (decision,) = admit([AdmissionRequest((fast,), 1, (0,), -1)], states, now)
        admitted += decision.admitted
    assert admitted in (49, 50)
