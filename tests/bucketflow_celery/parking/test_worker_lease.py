"""A worker's lease on what it was dispatched: who has it, who loses it, and what becomes of tasks that nobody has."""

from __future__ import annotations

import logging
import threading
from time import monotonic
from types import SimpleNamespace

import pytest

from bucketflow import StoreUnavailable
from bucketflow.testing import FakeClock
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.worker_lease import WorkerLease, reclaim
from bucketflow_celery.scheduling.model import DispatchRequest, Lane, ParkedMessage, TaskSpec, TenantSpec
from bucketflow_celery.store.calls import WorkerContext
from bucketflow_celery.testing import MemoryStore

SECONDS = 20.0  # renewed every 5 s, for 14 s


@pytest.fixture(autouse=True)
def _warnings_are_heard(caplog):
    """A worker that ran in this process has left the root logger at the level of its own."""
    caplog.set_level("WARNING")


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def store(clock):
    return MemoryStore(clock).backlogs


@pytest.fixture
def lease_of(store, clock):
    def make(node="w", known=frozenset(), at=store, on_notify=lambda _queue: None, clock_of=lambda: clock.now() / 1e6):
        in_flight = InFlightTasks(lambda: None)
        in_flight._tasks = known
        context = WorkerContext(Settings(lease=SECONDS), SimpleNamespace(backlogs=at), None, None)
        return WorkerLease(context, node, in_flight, on_notify, clock_of)

    return make


def hand(store, worker, *uids):
    """Park tasks and hand them to *worker*."""
    store.park("q", [ParkedMessage(uid, Lane("a", "f"), b"message") for uid in uids], 1000, busy=False).run()
    request = DispatchRequest(worker, len(uids), (), (TenantSpec("a", (TaskSpec("f", (0,)),)),))
    released = store.dispatch("q", request, "").run()
    assert [one.owned.item.uid for one in released.dispatched] == list(uids)


def owned(store, worker):
    return [one.uid for one in store.leased_tasks(worker).run()]


def parked(store):
    return sum(lane.count for lane in store.view("q").lanes)


class Away:
    """A store whose calls fail while it is away."""

    def __init__(self, store):
        self._store, self.is_away = store, False

    def __getattr__(self, name):
        if self.is_away:
            raise StoreUnavailable("memory", "away")
        return getattr(self._store, name)


def test_a_lease_holds_from_its_renewal_on_and_for_less_than_the_others_wait(lease_of, clock):
    lease = lease_of()
    assert not lease.is_valid()
    lease._renew_if_due()
    assert lease.is_valid()
    clock.advance(13.9)
    assert lease.is_valid()
    clock.advance(0.2)
    assert not lease.is_valid()
    lease._renew_if_due()
    assert lease.is_valid()


def test_it_is_renewed_when_a_quarter_has_passed(lease_of, store, clock):
    renewals = []
    renew = store.renew
    store.renew = lambda *args: renewals.append(args) or renew(*args)
    lease = lease_of()
    for _ in range(100):
        lease._renew_if_due()
        clock.advance(0.1)
    assert renewals == [(lease.worker, 14.0)] * 2


def test_no_two_leases_have_one_name(lease_of):
    names = {lease_of("host").worker for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("host/") for name in names)


def test_the_tasks_of_the_dead_go_to_others_within_a_lease(lease_of, store, clock):
    dead, alive = lease_of("dead"), lease_of("alive")
    dead._renew_if_due()
    hand(store, dead.worker, b"1", b"2")
    for _ in range(19):
        alive._renew_if_due()
        clock.advance(1.0)
    assert owned(store, dead.worker) == []
    assert parked(store) == 2


def test_who_was_taken_for_dead_goes_on_under_another_name(lease_of, store, clock, caplog):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    first = lease.worker
    hand(store, first, b"1")
    clock.advance(15)
    assert reclaim(store, first) == 1
    lease._renew_if_due()
    assert "lease expired, its tasks were reclaimed" in caplog.text
    assert not lease.is_valid()
    assert lease.worker != first
    lease._renew_if_due()
    assert lease.is_valid()


def test_who_comes_back_in_time_keeps_its_tasks(lease_of, store, clock):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    first = lease.worker
    hand(store, first, b"1")
    clock.advance(100)
    lease._renew_if_due()
    assert (lease.worker, lease.is_valid()) == (first, True)
    assert owned(store, first) == [b"1"]


def test_after_an_outage_of_the_store_everybody_keeps_their_tasks(lease_of, store, clock):
    away = Away(store)
    leases = [lease_of(name, {name.encode()}, away) for name in ("a", "b", "c")]
    for lease, uid in zip(leases, (b"a", b"b", b"c"), strict=True):
        lease._renew_if_due()
        hand(store, lease.worker, uid)
    for second in range(60):
        away.is_away = 1 <= second < 40
        clock.advance(1.0)
        for lease in leases[: 1 if second < 44 else 3]:  # the others are slow to come back
            if away.is_away and clock.now() / 1e6 >= lease._next_renewal:
                with pytest.raises(StoreUnavailable):
                    lease._renew_if_due()
            elif not away.is_away:
                lease._renew_if_due()
    assert [owned(store, lease.worker) for lease in leases] == [[b"a"], [b"b"], [b"c"]]


def test_who_starts_takes_over_from_the_dead_at_once(lease_of, store, clock):
    dead = lease_of("dead")
    dead._renew_if_due()
    hand(store, dead.worker, b"1")
    clock.advance(15)
    lease_of("new")._renew_if_due()
    assert parked(store) == 1


def test_what_was_handed_out_in_an_answer_that_never_came_goes_back_after_five_seconds(lease_of, store, clock):
    lease = lease_of(known={b"2"})
    lease._renew_if_due()
    hand(store, lease.worker, b"1", b"2")
    clock.advance(5.0)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"1", b"2"], "the answer may be under way"
    clock.advance(4.9)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"1", b"2"]
    clock.advance(0.2)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"2"]
    assert parked(store) == 1


def test_an_orphan_that_turns_out_to_be_known_stays(lease_of, store, clock):
    known = set()
    lease = lease_of(known=known)
    lease._renew_if_due()
    hand(store, lease.worker, b"1")
    for _ in range(4):
        clock.advance(5.0)
        lease._renew_if_due()
        known.symmetric_difference_update({b"1"})
    assert owned(store, lease.worker) == [b"1"], "it was never unknown twice in succession"


def test_who_leaves_gives_back_at_once_and_renews_no_more(lease_of, store, clock):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    hand(store, lease.worker, b"1")
    lease.release()
    assert not lease.is_valid()
    assert parked(store) == 1
    clock.advance(100)
    lease._renew_if_due()
    assert not lease.is_valid()


def test_who_leaves_while_the_store_is_away_says_so(lease_of, store, caplog):
    away = Away(store)
    lease = lease_of(at=away)
    lease._renew_if_due()
    away.is_away = True
    with caplog.at_level(logging.WARNING):
        lease.release()
    assert "reclaimed when it expires" in caplog.text


def test_a_store_that_fails_in_any_way_does_not_end_the_thread(lease_of, store, monkeypatch):
    monkeypatch.setattr("bucketflow_celery.parking.worker_lease._RETRY_PAUSE", 0.001)
    heard, failures = threading.Event(), [StoreUnavailable("memory", "away"), RuntimeError("odd")]

    class Odd:
        def __getattr__(self, name):
            if failures:
                raise failures.pop()
            return getattr(store, name)

    lease = lease_of(at=Odd(), on_notify=lambda _queue: heard.set(), clock_of=monotonic)
    lease.start()
    assert heard.wait(10)
    assert lease.is_valid()
    lease.release()
