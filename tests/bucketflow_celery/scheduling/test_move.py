"""Moving parked tasks to the backlog of another queue. ``test_backlog_mirror.py`` holds the Lua script equal."""

from __future__ import annotations

import pytest

from bucketflow_celery.scheduling.backlog import Backlog
from bucketflow_celery.scheduling.model import Lane, ParkedMessage
from bucketflow_celery.scheduling.move import first_of, move

NOW = 50_000_000 * 1_000_000
A, URGENT = Lane("a", "f", 5), Lane("a", "f", 0)


def backlog(name, **lanes):
    made = Backlog(name)
    for uid, lane in lanes.items():
        made.park([ParkedMessage(uid.encode(), lane, b"m", 2.0, 7_000_000)], 1000, NOW, busy=False)
    return made


def uids(backlog, lane):
    return [item.uid for of, items in backlog.lanes() if of == lane for item in items]


def test_moved_tasks_keep_their_order_their_age_their_cost_and_their_deadline_behind_those_that_are_there():
    source, target = backlog("q", m1=A, m2=A, m3=URGENT), backlog("r", own=A)
    before = dict(source.lanes())[A][0]
    assert move(source, target, A, [(b"m1", b"new 1"), (b"m2", b"new 2")], NOW + 9)[0] == 2
    assert uids(target, A) == [b"own", b"m1", b"m2"]
    assert dict(target.lanes())[A][1] == before
    assert (target.messages[b"m1"], target.messages[b"m2"]) == (b"new 1", b"new 2")
    assert (source.count, target.count, target.tenants["a"].cost) == (1, 3, 6.0)
    assert (uids(source, A), uids(source, URGENT), list(source.messages)) == ([], [b"m3"], [b"m3"])


@pytest.mark.parametrize(
    ("named", "moved"), [(["m2"], 0), (["m1", "m3"], 1), (["gone"], 0), ([], 0), (["m1", "m2", "m3"], 2)]
)
def test_a_move_ends_where_the_lane_has_another_task_by_now(named, moved):
    source, target = backlog("q", m1=A, m2=A), backlog("r")
    assert move(source, target, A, [(uid.encode(), b"") for uid in named], NOW)[0] == moved
    assert (source.count, target.count) == (2 - moved, moved)


def test_a_message_that_the_broker_delivers_again_after_the_move_is_not_parked_again():
    source, target = backlog("q", m1=A), backlog("r")
    move(source, target, A, [(b"m1", b"")], NOW)
    positions, _ = source.park([ParkedMessage(b"m1", A, b"m")], 1000, NOW, busy=False)
    assert positions == [0]


def test_an_emptied_backlog_starts_again_and_an_idle_target_is_notified():
    source, target = backlog("q", m1=A), backlog("r")
    source.virtual = 7.0
    assert move(source, target, A, [(b"m1", b"")], NOW) == (1, True)
    assert source.virtual == 0
    assert first_of(source, A) is None
    assert first_of(target, A).uid == b"m1"
