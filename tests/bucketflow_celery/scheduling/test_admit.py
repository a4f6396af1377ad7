"""Who may start now, who waits, and until when: the rules of the line, as stories and as properties."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bucketflow.algorithm import gcra as core
from bucketflow.limit import SECOND
from bucketflow.testing import worst_excess
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.admit import (
    EMPTY,
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


def ask(*path, cost=1.0, reservations=(), max_wait_us=NO_DEADLINE):
    return AdmissionRequest(path, cost, reservations or (0,) * len(path), max_wait_us)


def state_of(level, full_at, reserved_until=0.0):
    return LevelState(full_at, reserved_until, level.limit.capacity, level.limit.fill_rate)


def use_up(level, states, now=NOW, cost=None):
    states[level.key] = state_of(level, core.take(level.limit, 0.0, now, cost or level.limit.capacity))


def tokens(level, states, now):
    return core.tokens_at(level.limit, states.get(level.key, EMPTY).full_at, now)


# Stories: one bucket of 3 tokens, 10 a second; times in ms

STORY = [
    # at, cost, due, admitted, wait, new due, tokens left
    (0, 2, None, True, 0, None, 1),  # a level nobody has used is full
    (0, 2, None, False, 100, 100, 1),  # a refusal takes nothing, and is promised a place
    (0, 1, None, False, 200, 200, 1),  # nobody overtakes, though this one's token is there
    (50, 1, None, False, 250, 300, 1.5),
    (99, 2, 100, False, 1, 100, 1.99),  # too early: the place stays the same
    (100, 2, 100, True, 0, None, 0),  # exactly at its place
    (200, 1, 200, True, 0, None, 0),
    (250, 1, None, False, 150, 400, 0.5),  # behind the one of 300
    (320, 1, 300, True, 0, None, 0.2),  # 20 ms late costs it nothing
    (400, 1, 400, True, 0, None, 0),
    (450, 1, None, False, 50, 500, 0.5),
    (5_000, 1, None, True, 0, None, 2),  # the bucket was full for more than 2 s: nobody is expected_polls
    (5_000, 3, None, False, 100, 5_100, 2),
    (5_100, 3, 5_100, True, 0, None, 0),
]


def test_the_story_of_a_line():
    states = {}
    for at, cost, due, admitted, wait, new_due, left in STORY:
        now = NOW + at * MS
        place = 0 if due is None else NOW + due * MS
        (answer,) = admit([ask(QUEUE, cost=cost, reservations=(place,))], states, now)
        told = at, answer.admitted, answer.wait, answer.reservations
        dues = (place,) if admitted else (NOW + new_due * MS,)
        assert told == (at, admitted, wait * MS, dues)
        assert tokens(QUEUE, states, now) == pytest.approx(left), at


def test_a_path_takes_from_every_level_or_from_none():
    states = {}
    first, second = admit([ask(ALL, QUEUE, TENANT, cost=1)] * 2, states, NOW)
    assert first.admitted
    assert [tokens(level, states, NOW) for level in (ALL, QUEUE, TENANT)] == [9, 2, 0]
    assert second == AdmissionDecision(admitted=False, binding=2, wait=SECOND, reservations=(0, 0, NOW + SECOND))
    assert [tokens(level, states, NOW) for level in (ALL, QUEUE, TENANT)] == [9, 2, 0]


def test_the_level_with_the_longest_wait_binds():
    states = {}
    for level in (ALL, QUEUE, TENANT, TASK):
        use_up(level, states)
    assert admit([ask(ALL, QUEUE, TENANT, TASK)], states, NOW)[0].binding == 2
    assert admit([ask(ALL, QUEUE)], states, NOW)[0].binding == 1


@pytest.mark.parametrize(
    ("dry", "booked", "excused"),
    [
        ([QUEUE], QUEUE, []),
        ([ALL, QUEUE], QUEUE, []),
        ([TENANT], TENANT, []),
        ([QUEUE, TENANT], TENANT, []),  # who waits for its tenant must not keep a place of its queue
        ([ALL, QUEUE, TENANT, TASK], TENANT, [TASK]),  # nor one of its task type, which would come long before
        ([QUEUE, TASK], TASK, []),
    ],
)
def test_only_the_line_that_binds_is_booked_and_who_waits_for_it_is_excused_from_those_it_would_return_for(
    dry, booked, excused
):
    states = {}
    for level in dry:
        use_up(level, states)
    path = (ALL, QUEUE, TENANT, TASK)
    (answer,) = admit([ask(*path)], states, NOW)
    dues = {level: due - NOW for level, due in zip(path, answer.reservations, strict=True) if due}
    assert dues == {booked: answer.wait} | dict.fromkeys(excused, answer.wait - WAIVER)
    assert [level for level in path if states.get(level.key, EMPTY).reserved_until] == [booked]


# A ticket


def test_a_due_ticket_must_still_find_tokens():
    states = {}
    use_up(TENANT, states)
    (answer,) = admit([ask(TENANT, reservations=(NOW,))], states, NOW)
    assert answer == AdmissionDecision(admitted=False, binding=0, wait=SECOND, reservations=(NOW,))


def test_a_due_ticket_needs_no_other_place():
    states = {}
    use_up(TENANT, states)
    admit([ask(TENANT), ask(TENANT)], states, NOW)
    line = states[TENANT.key].reserved_until
    admit([ask(TENANT, reservations=(NOW + SECOND,))], states, NOW + SECOND // 2)
    assert states[TENANT.key].reserved_until == line


@pytest.mark.parametrize("ahead", [1, 3600 * SECOND, NO_DEADLINE - NOW - 1])
def test_a_place_behind_the_end_of_the_line_is_none(ahead):
    # Promised at a slower rate that a deployment has raised since, by another clock, or by nobody.
    states = {TENANT.key: state_of(TENANT, NOW + SECOND, NOW + SECOND)}
    end = NOW + SECOND
    (answer,) = admit([ask(TENANT, reservations=(end + ahead,))], states, NOW)
    assert (answer.wait, answer.reservations) == (2 * SECOND, (end + SECOND,))
    (kept,) = admit([ask(TENANT, reservations=answer.reservations)], states, NOW)
    assert kept.reservations == answer.reservations


def test_a_place_behind_the_end_of_the_line_is_none_and_needs_none_where_tokens_are():
    (answer,) = admit([ask(TENANT, reservations=(NOW + 3600 * SECOND,))], {}, NOW)
    assert answer.admitted


@pytest.mark.parametrize(("late", "admitted"), [(0, True), (RESERVATION_GRACE, True), (RESERVATION_GRACE + 1, False)])
def test_a_ticket_later_than_late_joins_the_line_again(late, admitted):
    due, now = NOW, NOW + late
    last = now + 5 * SECOND  # the line is long
    states = {TENANT.key: state_of(TENANT, float(now), float(last))}
    (answer,) = admit([ask(TENANT, reservations=(due,))], states, now)
    assert answer.admitted == admitted
    assert admitted or answer.reservations == (last + SECOND,)


@pytest.mark.parametrize(("full_for", "admitted"), [(RESERVATION_TTL - 1, False), (RESERVATION_TTL, True)])
def test_a_line_in_which_nobody_comes_is_dissolved(full_for, admitted):
    states = {TENANT.key: state_of(TENANT, float(NOW), NOW + 3600.0 * SECOND)}
    (answer,) = admit([ask(TENANT)], states, NOW + full_for)
    assert answer.admitted == admitted
    assert (states[TENANT.key].reserved_until == 0) == admitted


# Giving up, and leaving


@pytest.mark.parametrize(("patience", "booked"), [(SECOND - 1, False), (SECOND, True), (NO_DEADLINE, True)])
def test_one_that_would_give_up_is_promised_no_place(patience, booked):
    states = {}
    use_up(TENANT, states)
    (answer,) = admit([ask(TENANT, max_wait_us=patience)], states, NOW)
    assert (answer.wait, answer.binding) == (SECOND, 0)
    assert answer.reservations == ((NOW + SECOND,) if booked else (0,))
    assert bool(states[TENANT.key].reserved_until) == booked


def test_leaving_gives_the_place_to_the_next():
    states = {}
    use_up(TENANT, states)
    first, second = admit([ask(TENANT)] * 2, states, NOW)
    cancel_reservation(ask(TENANT, reservations=second.reservations), states, NOW)
    (third,) = admit([ask(TENANT)], states, NOW)
    assert third.reservations == second.reservations
    assert first.reservations != second.reservations


def test_leaving_an_empty_line_leaves_the_bucket_to_the_first():
    states = {}
    use_up(TENANT, states)
    (only,) = admit([ask(TENANT)], states, NOW)
    cancel_reservation(ask(TENANT, reservations=only.reservations), states, NOW)
    assert admit([ask(TENANT)], states, NOW)[0].reservations == only.reservations


@pytest.mark.parametrize("due", [0, NOW - SECOND, NOW])
def test_who_has_no_place_ahead_leaves_nothing(due):
    states = {TENANT.key: state_of(TENANT, NOW + 9.0 * SECOND, NOW + 9.0 * SECOND)}
    before = dict(states)
    cancel_reservation(ask(TENANT, reservations=(due,)), states, NOW)
    assert states == before


# A batch


def test_a_batch_stops_at_a_dry_queue():
    answers = admit([ask(QUEUE)] * 6, {}, NOW)
    assert [answer.admitted for answer in answers] == [True] * 3 + [False] * 3
    assert [answer.binding for answer in answers] == [None] * 3 + [0, None, None]
    assert [answer.reservations for answer in answers[3:]] == [(NOW + 100 * MS,), (0,), (0,)]


def test_a_batch_goes_on_past_a_dry_tenant():
    other = Level("tenant", "q:q/t:b", Limit(1, 1))
    answers = admit([ask(QUEUE, TENANT), ask(QUEUE, TENANT), ask(QUEUE, TENANT), ask(QUEUE, other)], {}, NOW)
    assert [answer.admitted for answer in answers] == [True, False, False, True]
    assert [answer.reservations[1] - NOW for answer in answers[1:3]] == [SECOND, 2 * SECOND]


def test_a_batch_goes_on_in_another_queue():
    other = Level("queue", "q:r", Limit(1, 1))
    answers = admit([ask(QUEUE, cost=3), ask(QUEUE), ask(other), ask(QUEUE)], {}, NOW)
    assert [(answer.admitted, answer.binding) for answer in answers] == [
        (True, None),
        (False, 0),
        (True, None),
        (False, None),
    ]


def test_an_empty_batch_has_no_answers():
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
def test_never_exceed_whatever_is_asked_with_whatever_ticket(path, steps):
    states, now, starts, kept = {}, NOW, [], {}
    for move, share, who in steps:
        now += move
        cost = cost_of(path, share)
        (answer,) = admit([ask(*path, cost=cost, reservations=kept.get(who, ()))], states, now)
        kept[who] = () if answer.admitted else answer.reservations
        if answer.admitted:
            starts.append((now / SECOND, cost))
        for level in path:
            assert 0 <= tokens(level, states, now) <= level.limit.capacity
    for level in path:
        if starts:
            assert worst_excess(starts, level.limit) < 1e-6 * (1 + level.limit.fill_rate)


@settings(max_examples=50, deadline=None)
@given(limits, st.integers(1, 200), st.integers(0, 2 * RESERVATION_GRACE))
def test_tickets_that_all_come_late_at_once_pass_no_more_than_the_bucket_holds(limit, waiting, late):
    level, states = Level("tenant", "t", limit), {}
    use_up(level, states)
    answers = admit([ask(level)] * waiting, states, NOW)
    now = max(answer.reservations[0] for answer in answers) + late
    again = admit([ask(level, reservations=answer.reservations) for answer in answers], states, now)
    assert sum(answer.admitted for answer in again) <= limit.capacity


@settings(max_examples=100, deadline=None)
@given(paths, st.lists(st.tuples(st.integers(0, SECOND), shares), max_size=30))
def test_a_refusal_takes_no_tokens_and_its_wait_is_honest_and_tight(path, steps):
    states, now = {}, NOW
    for move, share in steps:
        now += move
        question = ask(*path, cost=cost_of(path, share))
        before = {level: tokens(level, states, now) for level in path}
        (answer,) = admit([question], states, now)
        if answer.admitted:
            continue
        assert {level: tokens(level, states, now) for level in path} == before
        assert answer.wait == max(answer.reservations) - now or path[answer.binding].name in ("all", "queue")
        later = replace(question, reservations=answer.reservations)
        # Nobody else comes: exactly then it is admitted, 1 µs before it is not.
        assert not admit([later], dict(states), now + answer.wait - 1)[0].admitted
        if all(
            due or wait_is_over(level, states, now + answer.wait)
            for level, due in zip(path, answer.reservations, strict=True)
        ):
            assert admit([later], dict(states), now + answer.wait)[0].admitted


def wait_is_over(level, states, now):
    state = states.get(level.key, EMPTY)
    return state.reserved_until + level.limit.span <= now


@settings(max_examples=100, deadline=None)
@given(
    limits,
    st.lists(st.tuples(st.integers(0, 2 * SECOND), shares), min_size=1, max_size=60),
)
def test_nobody_overtakes_everybody_returns_at_most_once_and_no_token_is_left_lying(limit, arrivals):
    """Whoever is refused comes back exactly at its place. Costs differ."""
    level, states = Level("tenant", "t", limit), {}
    number = itertools.count()
    events, now = [], NOW
    for move, share in arrivals:
        now += move
        heapq.heappush(events, (now, next(number), ask(level, cost=share * limit.capacity), now))
    admitted, returned = [], []
    while events:
        now, who, question, came = heapq.heappop(events)
        (answer,) = admit([question], states, now)
        if answer.admitted:
            admitted.append((now, who, question.cost))
            continue
        assert question.reservations == (0,), "it had come back at its place, and was refused again"
        returned.append(who)
        heapq.heappush(events, (answer.reservations[0], who, replace(question, reservations=answer.reservations), came))
    assert [who for _, who, _ in admitted] == sorted(who for _, who, _ in admitted)
    assert len(admitted) == len(arrivals)
    # As a plain queue in front of a bucket would do it: each as soon as the one before has started and its tokens came.
    full_at, clock = 0.0, 0
    came = {who: at for who, at in enumerate(itertools.accumulate((move for move, _ in arrivals), initial=NOW)) if who}
    for at, who, cost in admitted:
        clock = max(clock, came[who + 1])
        clock += core.wait_for(limit, full_at, clock, cost)
        full_at = core.take(limit, full_at, clock, cost)
        assert at == pytest.approx(clock, abs=len(arrivals)), "µs: each promise is rounded up"


@settings(max_examples=100, deadline=None)
@given(paths, st.lists(st.tuples(st.integers(0, 4 * SECOND), shares, st.integers(0, 5)), max_size=60))
def test_a_level_that_has_expired_says_what_one_that_has_not_would_say(path, steps):
    """Redis forgets a level once it is full and its line is dissolved."""
    kept, forgetful, now, dues = {}, {}, NOW, {}
    for move, share, who in steps:
        now += move
        for key, state in list(forgetful.items()):
            if max(state.full_at, state.reserved_until) + RESERVATION_TTL <= now:
                del forgetful[key]
        question = ask(*path, cost=cost_of(path, share), reservations=dues.get(who, ()))
        (answer,) = admit([question], kept, now)
        assert admit([question], forgetful, now) == [answer]
        dues[who] = () if answer.admitted else answer.reservations


@given(paths, st.lists(st.tuples(st.integers(-5 * SECOND, 5 * SECOND), shares), max_size=30))
def test_a_clock_that_steps_back_earns_nothing_and_never_raises(path, steps):
    states, now = {}, NOW
    for move, share in steps:
        before = {level: tokens(level, states, now) for level in path}
        now = max(1, now + move)
        if move <= 0:
            assert all(tokens(level, states, now) <= before[level] for level in path)
        admit([ask(*path, cost=cost_of(path, share))], states, now)


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
    assert admit([ask(before, cost=taken)], states, NOW)[0].admitted
    assert admit([ask(after)], states, NOW)[0].wait == pytest.approx(wait * SECOND, abs=1)


def test_under_new_limits_a_line_of_as_many_tasks_takes_as_long_as_they_take_now():
    states = {}
    slow, fast = Level("tenant", "t", Limit(1, 1)), Level("tenant", "t", Limit(1, 100))
    admit([ask(slow)] * 91, states, NOW)
    assert admit([ask(fast)], states, NOW)[0].wait == pytest.approx(0.91 * SECOND, abs=1)


def test_under_a_faster_limit_an_empty_bucket_fills_however_often_it_is_asked():
    slow, fast = (Level("queue", "q:q", Limit(5, rate)) for rate in (1 / 3600, 50))
    states, now = {}, 10**12
    assert all(answer.admitted for answer in admit([AdmissionRequest((slow,), 1, (0,))] * 5, states, now))
    admitted = 0
    for _ in range(200):  # a second of questions by those who are promised no place
        now += 5_000
        (answer,) = admit([AdmissionRequest((fast,), 1, (0,), -1)], states, now)
        admitted += answer.admitted
    assert admitted in (49, 50)
