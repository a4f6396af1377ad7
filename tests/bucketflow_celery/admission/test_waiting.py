"""The small pure parts of waiting: tickets, refusals, outages, lines and places."""

from __future__ import annotations

import json
import logging

import pytest

from bucketflow_celery import Limit, ThrottleTimeout
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.admission.refusal import Defer, Fail, Hold, exceeds_max_wait, on_refusal
from bucketflow_celery.admission.reservations import ReservationPool
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.scheduling.admit import NO_DEADLINE, AdmissionDecision, AdmissionRequest
from bucketflow_celery.scheduling.ticket import NO_TICKET, Ticket
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.worker.refusal_log import RefusalLog

QUEUE = Level("queue", "q:q", Limit(1, 10))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
PATH = (QUEUE, TENANT)


def entry(*, cost=1.0, max_wait=None, retry_at=0.0, due=None):
    dues = {} if due is None else {TENANT.key: due}
    return PendingTask(object(), "q", ThrottlePolicy(PATH, cost, max_wait), 0.0, reservations=dues, retry_at=retry_at)


# Tickets


def test_a_ticket_survives_its_header():
    ticket = Ticket({"q:q/t:a": 62_000_000_000_000}, 1.7e9)
    assert Ticket.read(json.loads(json.dumps(ticket.write()))) == ticket
    assert ticket.at(PATH) == (0, 62_000_000_000_000)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        [],
        3,
        {},
        {"dues": {}},
        {"since": 1.0},
        {"dues": [1], "since": 1.0},
        {"dues": {"a": 1}, "since": "now"},
    ],
)
def test_a_header_of_another_version_is_no_ticket(header):
    assert Ticket.read(header) == NO_TICKET


@pytest.mark.parametrize("due", [1.5, "1", None, True, -1, 1 << 80])
def test_a_due_that_is_no_instant_is_left_out(due):
    assert Ticket.read({"dues": {"a": due, "b": 5}, "since": 1.0}).reservations == {"b": 5}


@pytest.mark.parametrize("since", [float("nan"), float("inf"), True, 10**400, -1])
def test_a_since_that_is_no_instant_is_no_ticket(since):
    assert Ticket.read({"dues": {"a": 1}, "since": since}) == NO_TICKET


# Refusals

DECISIONS = [
    # level, wait, on_limit, had a place, what becomes of it
    (QUEUE, 0.01, "retry", False, Hold()),
    (QUEUE, 1e6, "retry", False, Hold()),
    (TENANT, 0.05, "retry", False, Hold()),
    (TENANT, 0.051, "retry", False, Defer(0.051)),
    (TENANT, 0.051, "hold", False, Hold()),
    (TENANT, 5.0, "retry", True, Hold()),
    (TENANT, 5.1, "retry", True, Defer(5.1)),
    (TENANT, 99.0, "retry", False, Defer(60.0)),
    (TENANT, 99.0, "retry", True, Defer(60.0)),
]


@pytest.mark.parametrize(("level", "wait", "on_limit", "had_place", "expected"), DECISIONS)
def test_what_becomes_of_a_refused_task(level, wait, on_limit, had_place, expected):
    policy = ThrottlePolicy(PATH, on_limit=on_limit)
    assert on_refusal(policy, level, wait, 0.0, had_place=had_place, cap=60.0) == expected


@pytest.mark.parametrize(
    ("max_wait", "waited", "wait", "gives_up"),
    [(None, 1e9, 1e9, False), (10, 0, 10, False), (10, 0, 10.1, True), (10, 6, 4, False), (10, 6, 5, True)],
)
@pytest.mark.parametrize("level", [QUEUE, TENANT])
@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_who_would_wait_for_longer_than_it_may_gives_up_at_once(  # noqa: PLR0913, PLR0917
    level, on_limit, max_wait, waited, wait, gives_up
):
    policy = ThrottlePolicy(PATH, max_wait=max_wait, on_limit=on_limit)
    decision = on_refusal(policy, level, wait, waited, had_place=False, cap=60.0)
    assert isinstance(decision, Fail) == gives_up
    assert (exceeds_max_wait(policy, level, waited + wait) is not None) == gives_up
    if gives_up:
        error = decision.error
        assert isinstance(error, ThrottleTimeout)
        assert (error.level, error.wait, error.max_wait) == (level.name, waited + wait, max_wait)


# Outages


def test_the_pauses_of_an_outage_double_up_to_ten_seconds():
    outage, now, pauses = CircuitBreaker("hold"), 100.0, []
    assert outage.until == 0
    for number in range(7):
        assert outage.failed(now) == (number == 0)
        pauses.append(outage.until - now)
        now = outage.until
    assert pauses == [0.5, 1, 2, 4, 8, 10, 10]
    assert outage.recovered()
    assert (outage.until, outage.recovered()) == (0, False)
    assert outage.failed(now)
    assert outage.until == now + 0.5


# HoldQueues


def test_a_line_that_holds_is_first_in_first_out():
    line, entries = HoldQueue(QUEUE), [entry() for _ in range(4)]
    for each in entries:
        line.add(each)
    head = line.take_ready(0.0, 1)
    line.put_back(head)
    assert list(line.tasks) == entries


def test_a_line_of_those_who_have_places_is_in_their_order():
    line = HoldQueue(TENANT)
    third, first, second = entry(due=30), entry(due=10, retry_at=9.0), entry(due=20)
    for each in (third, first, second):
        line.add(each)
    assert list(line.tasks) == [first, second, third]
    assert line.retry_at == 9.0
    assert line.take_ready(1.0, 9) == []  # of many who are due only the first asks


@pytest.mark.parametrize(
    ("late", "most", "cost", "taken"),
    [(0.0, 64, 1, 2), (0.5, 64, 1, 7), (0.5, 3, 1, 3), (0.5, 64, 5, 3), (1e6, 64, 1, 9)],
)
def test_behind_the_head_come_as_many_as_tokens_may_have_come_for_and_one_more(late, most, cost, taken):
    line = HoldQueue(QUEUE)
    for _ in range(9):
        line.add(entry(cost=cost, retry_at=10.0))
    assert len(line.take_ready(10.0 + late, most)) == taken


def test_who_joins_a_line_waits_for_all_ahead():
    line = HoldQueue(QUEUE)
    assert line.wait_ahead(0.0) == 0
    line.add(entry(cost=2, retry_at=3.0))
    assert line.wait_ahead(0.0) == 3
    line.add(entry(cost=5))
    assert line.wait_ahead(1.0) == 2 + 5 / 10


def test_a_newcomer_joins_the_line_of_all_before_that_of_its_queue_and_none_of_a_tenant():
    top = Level("all", "all", Limit(1, 1))
    lines = HoldQueues()
    path = (top, *PATH)
    lines.of(TENANT.key, TENANT).add(entry(due=1))
    assert lines.blocking(path) is None
    lines.of(QUEUE.key, QUEUE).add(entry())
    assert lines.blocking(path) is lines.of(QUEUE.key, QUEUE)
    lines.of(top.key, top).add(entry())
    assert lines.blocking(path) is lines.of(top.key, top)
    assert len(lines) == len(list(lines)) == 3


def test_an_empty_line_blocks_nobody_and_is_forgotten():
    lines = HoldQueues()
    line = lines.of(QUEUE.key, QUEUE)
    line.add(entry())
    assert lines.next_ready_at() == 0
    lines.remove(set(lines))
    assert lines.blocking(PATH) is None
    lines.prune()
    assert lines.of(QUEUE.key, QUEUE) is not line
    assert lines.next_ready_at() == float("inf")


# ReservationPool


def test_a_place_in_a_queue_belongs_to_the_line_and_a_place_at_a_tenant_to_the_task():
    places, first, second = ReservationPool(), entry(), entry()
    ask = places.question(first, 0.0)
    assert ask == AdmissionRequest(PATH, 1.0, (0, 0), NO_DEADLINE)
    places.settle(first, AdmissionDecision(admitted=False, binding=1, wait=5, reservations=(7, 9)))
    assert first.reservations == {TENANT.key: 9}
    assert places.question(second, 0.0).reservations == (7, 0)
    assert places.question(first, 0.0).reservations == (0, 9)


def test_an_unanswered_question_keeps_its_places():
    places, head = ReservationPool(), entry()
    for due in (30, 10, 20):
        places.settle(head, AdmissionDecision(admitted=False, binding=0, wait=5, reservations=(due, 0)))
    asks = [places.question(head, 0.0) for _ in range(2)]
    assert [ask.reservations[0] for ask in asks] == [10, 20]
    places.restore(asks)
    assert [places.question(head, 0.0).reservations[0] for _ in range(4)] == [10, 20, 30, 0]


@pytest.mark.parametrize(("max_wait", "waited", "patience"), [(None, 9, NO_DEADLINE), (3, 1, 2_000_000), (3, 9, 0)])
def test_a_question_says_how_long_its_task_would_still_wait(max_wait, waited, patience):
    assert ReservationPool().question(entry(max_wait=max_wait), waited).max_wait_us == patience


# The log


def test_refusals_are_summed_up_in_one_line_every_ten_seconds(caplog):
    now = [100.0]
    summary = RefusalLog(lambda: now[0])
    with caplog.at_level(logging.INFO):
        summary.add("q:q", 1.0)
        for number in range(50):
            now[0] += 0.1
            summary.add(f"q:q/t:{number % 7}", number / 10)
        assert len(caplog.records) == 1
        now[0] += 10
        summary.add("q:q", 2.0)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "throttled 1 task(s): q:q 1 (longest wait 1.0 s)"
    assert second.startswith("throttled 51 task(s): q:q/t:0 8 (longest wait 4.9 s), ")
    assert second.count("longest wait") == 5
