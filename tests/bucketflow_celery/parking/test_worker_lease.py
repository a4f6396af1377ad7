"""Worker leases: renewal, expiry, reclaimed tasks and orphans."""

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
def _capture_warnings(caplog):
    """Capture warnings: a worker that ran in this process may have left another level on the root logger."""
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


def dispatch(store, worker, *uids):
    """Park tasks and dispatch them to *worker*."""
    store.park("q", [ParkedMessage(uid, Lane("a", "f"), b"message") for uid in uids], 1000, busy=False).run()
    request = DispatchRequest(worker, len(uids), (), (TenantSpec("a", (TaskSpec("f", (0,)),)),), ("f",))
    reply = store.dispatch("q", request, "").run()
    assert [one.owned.item.uid for one in reply.dispatched] == list(uids)


def owned(store, worker):
    return [one.uid for one in store.leased_tasks(worker).run()]


def parked(store):
    return sum(lane.count for lane in store.view("q").lanes)


class UnreliableStore:
    """A store whose calls fail while it is down."""

    def __init__(self, store):
        self._store, self.is_down = store, False

    def __getattr__(self, name):
        if self.is_down:
            raise StoreUnavailable("memory", "down")
        return getattr(self._store, name)


def test_a_lease_is_valid_from_its_renewal_until_it_expires(lease_of, clock):
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


def test_a_lease_is_renewed_after_a_quarter_of_its_option(lease_of, store, clock):
    renewals = []
    renew = store.renew
    store.renew = lambda *args: renewals.append(args) or renew(*args)
    lease = lease_of()
    for _ in range(100):
        lease._renew_if_due()
        clock.advance(0.1)
    assert renewals == [(lease.worker, 14.0)] * 2


def test_one_warning_of_the_fleet_names_a_queue_with_parked_tasks_that_no_worker_serves(lease_of, store, clock, caplog):
    store.park("q", [ParkedMessage(uid, Lane("a", "f"), b"m") for uid in (b"1", b"2")], 1000, busy=False).run()
    leases = [lease_of(), lease_of()]
    for lease in leases:
        lease.stranded.queues = lambda: ["other"]
    for _ in range(60):
        for lease in leases:
            lease._renew_if_due()
        clock.advance(1.0)
    assert caplog.messages == ["queue q: parked tasks wait that no live worker serves: tasks=2"]


def test_a_worker_that_leaves_serves_its_queues_no_more(lease_of, store):
    store.park("q", [ParkedMessage(b"1", Lane("a", "f"), b"m")], 1000, busy=False).run()
    lease = lease_of()
    lease.stranded.queues = lambda: ["q"]
    lease._renew_if_due()
    assert store.view("q").is_served
    lease.release()
    assert not store.view("q").is_served


def test_every_lease_has_a_unique_name(lease_of):
    names = {lease_of("host").worker for _ in range(100)}
    assert len(names) == 100
    assert all(name.startswith("host/") for name in names)


def test_tasks_of_an_expired_lease_are_reclaimed_within_the_option_lease(lease_of, store, clock):
    expired, valid = lease_of("expired"), lease_of("valid")
    expired._renew_if_due()
    dispatch(store, expired.worker, b"1", b"2")
    for _ in range(19):
        valid._renew_if_due()
        clock.advance(1.0)
    assert owned(store, expired.worker) == []
    assert parked(store) == 2


def test_a_worker_whose_lease_was_reclaimed_continues_under_a_new_name(lease_of, store, clock, caplog):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    first = lease.worker
    dispatch(store, first, b"1")
    clock.advance(15)
    assert reclaim(store, first) == 1
    lease._renew_if_due()
    assert "lease expired, its tasks were reclaimed" in caplog.text
    assert not lease.is_valid()
    assert lease.worker != first
    lease._renew_if_due()
    assert lease.is_valid()


def test_a_worker_that_renews_before_it_is_reclaimed_keeps_its_tasks(lease_of, store, clock):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    first = lease.worker
    dispatch(store, first, b"1")
    clock.advance(100)
    lease._renew_if_due()
    assert (lease.worker, lease.is_valid()) == (first, True)
    assert owned(store, first) == [b"1"]


def test_after_a_store_outage_every_worker_keeps_its_tasks(lease_of, store, clock):
    unreliable = UnreliableStore(store)
    leases = [lease_of(name, {name.encode()}, unreliable) for name in ("a", "b", "c")]
    for lease, uid in zip(leases, (b"a", b"b", b"c"), strict=True):
        lease._renew_if_due()
        dispatch(store, lease.worker, uid)
    for second in range(60):
        unreliable.is_down = 1 <= second < 40
        clock.advance(1.0)
        for lease in leases[: 1 if second < 44 else 3]:  # the others reconnect later
            if unreliable.is_down and clock.now() / 1e6 >= lease._next_renewal:
                with pytest.raises(StoreUnavailable):
                    lease._renew_if_due()
            elif not unreliable.is_down:
                lease._renew_if_due()
    assert [owned(store, lease.worker) for lease in leases] == [[b"a"], [b"b"], [b"c"]]


def test_a_worker_that_starts_reclaims_the_tasks_of_expired_leases_at_once(lease_of, store, clock):
    expired = lease_of("expired")
    expired._renew_if_due()
    dispatch(store, expired.worker, b"1")
    clock.advance(15)
    lease_of("new")._renew_if_due()
    assert parked(store) == 1


def test_tasks_dispatched_in_a_lost_reply_return_to_their_lanes_after_five_seconds(lease_of, store, clock):
    lease = lease_of(known={b"2"})
    lease._renew_if_due()
    dispatch(store, lease.worker, b"1", b"2")
    clock.advance(5.0)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"1", b"2"], "the reply may be on its way"
    clock.advance(4.9)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"1", b"2"]
    clock.advance(0.2)
    lease._renew_if_due()
    assert owned(store, lease.worker) == [b"2"]
    assert parked(store) == 1


def test_a_task_that_is_unknown_for_one_renewal_only_is_not_returned(lease_of, store, clock):
    known = set()
    lease = lease_of(known=known)
    lease._renew_if_due()
    dispatch(store, lease.worker, b"1")
    for _ in range(4):
        clock.advance(5.0)
        lease._renew_if_due()
        known.symmetric_difference_update({b"1"})
    assert owned(store, lease.worker) == [b"1"], "it was never unknown twice in succession"


def test_release_returns_all_tasks_at_once_and_ends_the_renewals(lease_of, store, clock):
    lease = lease_of(known={b"1"})
    lease._renew_if_due()
    dispatch(store, lease.worker, b"1")
    lease.release()
    assert not lease.is_valid()
    assert parked(store) == 1
    clock.advance(100)
    lease._renew_if_due()
    assert not lease.is_valid()


def test_a_release_while_the_store_is_down_is_logged(lease_of, store, caplog):
    unreliable = UnreliableStore(store)
    lease = lease_of(at=unreliable)
    lease._renew_if_due()
    unreliable.is_down = True
    with caplog.at_level(logging.WARNING):
        lease.release()
    assert "reclaimed when it expires" in caplog.text


def test_no_error_of_the_store_ends_the_lease_thread(lease_of, store, monkeypatch):
    monkeypatch.setattr("bucketflow_celery.parking.worker_lease._RETRY_PAUSE", 0.001)
    notified, failures = threading.Event(), [StoreUnavailable("memory", "down"), RuntimeError("unexpected")]

    class FailingStore:
        def __getattr__(self, name):
            if failures:
                raise failures.pop()
            return getattr(store, name)

    lease = lease_of(at=FailingStore(), on_notify=lambda _queue: notified.set(), clock_of=monotonic)
    lease.start()
    assert notified.wait(10)
    assert lease.is_valid()
    lease.release()


def test_a_failed_renewal_is_one_warning_until_a_renewal_succeeds(lease_of, store, clock, caplog):
    unreliable = UnreliableStore(store)
    lease = lease_of(at=unreliable)
    for _ in range(2):
        unreliable.is_down = True
        clock.advance(SECONDS)
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                lease._renew_if_due()
        unreliable.is_down = False
        lease._renew_if_due()

    assert [record.levelname for record in caplog.records if "not renewed" in record.message] == ["WARNING"] * 2


class Listener:
    """Says *names* and is then silent; each wait takes its time on *clock*."""

    def __init__(self, clock, *names):
        self._clock, self._names = clock, list(names)

    def get(self, timeout):
        self._clock.advance(timeout)
        return self._names.pop(0) if self._names else None


@pytest.mark.parametrize("names", [[], ["q"], ["q"] * 100])
def test_after_thirty_seconds_of_silence_the_worker_subscribes_anew(lease_of, clock, names):
    heard = []
    lease = lease_of(on_notify=heard.append)
    began = clock.now()

    lease._listen(Listener(clock, *names))

    assert heard == names
    assert 30 <= (clock.now() - began) / 1e6 <= 31 + len(names)
