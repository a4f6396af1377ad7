"""The ticket in the headers of a deferred task."""

from __future__ import annotations

import json

import pytest

from bucketflow_celery import Limit
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.ticket import NO_TICKET, Ticket

QUEUE = Level("queue", "q:q", Limit(1, 10))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
PATH = (QUEUE, TENANT)


@pytest.mark.parametrize("facts", [{}, {"due_since": 1.7e9 + 5}, {"paused": "tenant:a"}])
def test_a_ticket_survives_its_header(facts):
    ticket = Ticket({"q:q/t:a": 62_000_000_000_000}, 1.7e9, **facts)
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


@pytest.mark.parametrize("paused", [3, None, ["tenant:a"], True])
def test_a_pause_that_is_no_name_is_left_out(paused):
    assert Ticket.read({"dues": {}, "since": 1.0, "paused": paused}).paused is None


@pytest.mark.parametrize("since", [float("nan"), float("inf"), True, 10**400, -1])
def test_a_since_that_is_no_instant_is_no_ticket(since):
    assert Ticket.read({"dues": {"a": 1}, "since": since}) == NO_TICKET
