"""Worker leases: renewal, expiry and settlement. test_backlog_mirror.py compares both with their Lua."""

from __future__ import annotations

import pytest

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.backlog import Backlog
from bucketflow_celery.scheduling.dispatch import dispatch
from bucketflow_celery.scheduling.leases import MAX_EXPIRED, RECLAIMED, Leases, settle
from bucketflow_celery.scheduling.model import (
    DispatchRequest,
    Lane,
    ParkedMessage,
    Refund,
    Settlement,
    TaskSpec,
    TenantSpec,
)

SECOND = 1_000_000
NOW = 1_000 * SECOND
LANE = Lane("acme", "mail")
LEVEL = Level("queue", "q:q", Limit(10, 1))


RENEWALS = [
    # at in s, worker, duration in s, had a lease, workers whose lease has expired
    (0,  "a", 10, False, []),
    (5,  "b", 10, False, []),
    (9,  "a", 10, True,  []),
    (15, "a", 10, True,  ["b"]),  # to the last tick
    (16, "b", 10, True,  []),     # an expired lease may be renewed until its tasks are reclaimed
    (40, "c", 0,  False, ["a", "b", "c"]),
]  # fmt: skip


def test_the_story_of_renewals():
    leases = Leases()
    for at, worker, duration, had_lease, expired in RENEWALS:
        assert leases.renew(worker, duration * SECOND, NOW + at * SECOND) == (had_lease, expired), at


def test_a_renewal_names_a_limited_number_of_expired_leases_the_earliest_first():
    leases = Leases()
    for number in range(MAX_EXPIRED + 5):
        leases.renew(f"w{number:02}", 1, NOW - number)
    _, expired = leases.renew("w", SECOND, NOW + SECOND)
    assert expired == [f"w{number:02}" for number in reversed(range(5, MAX_EXPIRED + 5))]


@pytest.fixture
def leased():
    """Return a backlog of four tasks, three of them dispatched; the leases; and the states of the levels."""
    backlog, leases, states = Backlog("q"), Leases(), {}
    leases.renew("w", SECOND, NOW)
    messages = [ParkedMessage(bytes([number]), LANE, b"message") for number in range(4)]
    backlog.park(messages, 10, NOW, busy=False)
    request = DispatchRequest("w", 3, (LEVEL,), (TenantSpec("acme", (TaskSpec("mail", (0,)),)),), ("mail",))
    reply, _ = dispatch(backlog, request, leases.owned["w"], states, NOW)
    assert len(reply.dispatched) == 3
    return backlog, leases, states


def waiting(backlog):
    return [item.uid for _, items in backlog.lanes() for item in items]


def test_an_ended_task_leaves_no_message(leased):
    backlog, leases, states = leased
    assert settle(backlog, Settlement("w", ended=(b"\0", b"\1")), leases, states, NOW) == (0, False)
    assert sorted(backlog.messages) == [b"\2", b"\3"]
    assert list(leases.owned["w"]) == [b"\2"]
    assert sorted(backlog.dedup) == [b"\0", b"\1", b"\2", b"\3"], "the broker may deliver them again"


def test_an_acknowledged_message_may_be_parked_again_after_its_task_has_ended(leased):
    backlog, leases, states = leased
    settle(backlog, Settlement("w", ended=(b"\0",), confirmed=(b"\0",)), leases, states, NOW)
    assert backlog.park([ParkedMessage(b"\0", LANE, b"")], 10, NOW, busy=False) == ([2], False)


def test_returned_tasks_are_first_in_their_lane_in_their_order(leased):
    backlog, leases, states = leased
    returned = ((b"\0", LANE, False), (b"\2", LANE, True))
    assert settle(backlog, Settlement("w", returned=returned), leases, states, NOW + SECOND) == (2, True)
    assert waiting(backlog) == [b"\0", b"\2", b"\3"]
    assert [item.redelivered for _, items in backlog.lanes() for item in items] == [False, True, False]


def test_a_refund_returns_the_tokens_at_every_level(leased):
    backlog, leases, states = leased
    assert states[LEVEL.key].full_at == NOW + 3 * SECOND
    settle(backlog, Settlement("w", refunds=(Refund((LEVEL,), 2.0, "acme", 2.0),)), leases, states, NOW)
    assert states[LEVEL.key].full_at == NOW + SECOND


@pytest.mark.parametrize(("age", "returned"), [(SECOND - 1, 0), (SECOND, 3)])
def test_tasks_are_reclaimed_only_from_an_expired_lease(leased, age, returned):
    backlog, leases, states = leased
    reclaim = Settlement("w", returned=tuple((bytes([number]), LANE, True) for number in range(3)), reclaims=True)
    assert settle(backlog, reclaim, leases, states, NOW + age) == (returned, returned > 0)
    assert len(waiting(backlog)) == 1 + returned
    assert ("w" in leases.workers) == (returned == 0), "a worker without tasks is forgotten"


def test_a_worker_whose_tasks_are_being_reclaimed_cannot_renew_or_settle_them(leased):
    backlog, leases, states = leased
    reclaim = Settlement("w", returned=((b"\0", LANE, True),), reclaims=True)
    settle(backlog, reclaim, leases, states, NOW + SECOND)
    assert leases.workers["w"] == RECLAIMED
    assert leases.renew("w", SECOND, NOW + SECOND) == (False, ["w"])
    assert leases.workers["w"] == RECLAIMED
    settle(backlog, Settlement("w", ended=(b"\0",)), leases, states, NOW + SECOND)
    assert b"\0" in backlog.messages, "it belongs to the lane again"
