"""Purge marks: which tasks they match, and how stores keep them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow.limit import SECOND
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.testing import FakeClock
from bucketflow_celery.scheduling import purges
from bucketflow_celery.scheduling.purges import Purge, PurgeMarks
from bucketflow_celery.scheduling.ticket import NO_TICKET, Ticket
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.testing import MemoryStore

MATCHES = [
    # tenant and task of the purge, tenant and task of a task, whether it matches
    (None, None, "a", "f", True),
    (None, None, None, "f", True),
    ("a", None, "a", "f", True),
    ("a", None, "b", "f", False),
    ("a", None, None, "f", False),
    ("", None, None, "f", True),
    ("", None, "a", "f", False),
    (None, "f", "a", "f", True),
    (None, "f", "a", "g", False),
    ("a", "f", "a", "f", True),
    ("a", "f", "a", "g", False),
]


@pytest.mark.parametrize(("tenant", "task", "of", "kind", "matches"), MATCHES)
def test_a_mark_matches_by_queue_tenant_and_task_type(tenant, task, of, kind, matches):
    marks = PurgeMarks([(Purge("q", tenant, task).write(), 7)], now=10)
    assert marks.purged_at("q", of, kind) == (7 if matches else 0)
    assert marks.purged_at("r", of, kind) == 0
    assert marks.latest == 7


def test_the_latest_of_the_marks_that_match_counts():
    marks = PurgeMarks([(Purge("q").write(), 5), (Purge("q", "a").write(), 9), (Purge("q", "b").write(), 8)], now=10)
    assert [marks.purged_at("q", tenant, "f") for tenant in ("a", "b", None)] == [9, 8, 5]


def test_no_mark_is_later_than_the_clock_that_it_is_read_with():
    assert PurgeMarks([(Purge("q").write(), 50)], now=10).purged_at("q", None, "f") == 10


@given(st.text(), st.none() | st.text(), st.none() | st.text())
def test_a_mark_is_read_as_it_was_written(queue, tenant, task):
    assert Purge.read(Purge(queue, tenant, task).write()) == Purge(queue, tenant, task)


@pytest.mark.parametrize(
    "name", ["", "{}", "[]", "3", "null", '["q"]', '["q", 1, null]', "[null, null, null]", "\ud800"]
)
def test_a_mark_of_another_form_is_ignored(name):
    assert Purge.read(name) is None
    assert PurgeMarks([(name, 7)], now=10).latest == 0


@pytest.mark.parametrize("seen_at", [None, 1_700_000_000_000_000])
def test_a_ticket_carries_when_a_worker_received_the_task_first(seen_at):
    header = json.loads(json.dumps(Ticket({}, 1.0, seen_at=seen_at).write()))
    assert Ticket.read(header).seen_at == seen_at


@pytest.mark.parametrize("odd", ["1", 1.5, -1, True, [], 1 << 60])
def test_an_odd_instant_in_a_ticket_is_ignored(odd):
    assert Ticket.read({"dues": {}, "since": 1.0, "seen": odd}).seen_at is NO_TICKET.seen_at


@pytest.fixture(params=["memory", "redis"])
def store(request):
    """Yield a store without marks."""
    if request.param == "memory":
        return MemoryStore(FakeClock(1000.0))
    return RedisStore(ScriptRunner(request.getfixturevalue("redis_client")), "twin")


def test_a_store_keeps_each_mark_once_with_its_latest_instant_and_changes_the_version(store):
    versions = [store.limits().version]
    for name in ("b", "a", "b"):
        if isinstance(store, MemoryStore):
            store._clock.advance(1.0)
        store.mark_purge(name)
        versions.append(store.limits().version)
    now, marks = store.purges()
    assert [name for name, _ in marks] == ["a", "b"]
    assert 0 < dict(marks)["a"] < dict(marks)["b"] <= now
    assert len(set(versions)) == 4

    store.pause("queue:q", paused=True)
    store.set_limits({"all": "1/s"})
    store.set_limits(None)
    store.pause("queue:q", paused=False)
    assert store.limits().version == versions[-1], "a worker reads the marks although no limits are set"
    assert store.purges()[1] == marks


def test_marks_are_bounded_and_expire(store, monkeypatch):
    monkeypatch.setattr("bucketflow_celery.testing.MAX_PURGES", 5)
    count = 8 if isinstance(store, MemoryStore) else purges.MAX_PURGES + 3
    for number in range(count):
        store.mark_purge(str(number))
    names = [name for name, _ in store.purges()[1]]
    assert names[-1] == str(count - 1)
    assert len(names) <= count - 3
    if isinstance(store, MemoryStore):
        store._clock.advance(purges.PURGE_TTL / SECOND + 1)
        store.mark_purge("new")
        assert [name for name, _ in store.purges()[1]] == ["new"]
    else:
        assert 0 < store.runner._client.pttl("{twin}:limits:purges") <= purges.PURGE_TTL / 1000
