"""Announcements of workers: how many there are, and whether their tables differ."""

from __future__ import annotations

import pytest

from bucketflow.errors import StoreUnavailable
from bucketflow.testing import FakeClock
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.store.calls import BlockingRunner
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.worker.table_check import INTERVAL, TableCheck


class Timers:
    """Implements ``call_after`` of several workers on one clock."""

    def __init__(self, clock):
        self._clock, self._due = clock, []

    def call_after(self, seconds, callback):
        self._due.append((self._clock.now() + seconds * 1e6, callback))

    def advance(self, seconds):
        self._clock.advance(seconds)
        due = [one for one in self._due if one[0] <= self._clock.now()]
        self._due = [one for one in self._due if one not in due]
        for _, callback in due:
            callback()


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def timers(clock):
    return Timers(clock)


def worker_of(store, timers, limits=None):
    """Return a check that has started, and the counts that it reports."""
    counts = []
    check = TableCheck(store, LimitTable.parse(limits or {}, []), "shop", timers.call_after)
    check.on_count = counts.append
    check.start(BlockingRunner())
    return check, counts


def test_all_workers_are_counted_whatever_their_limits_are(clock, timers):
    store = MemoryStore(clock)
    checks = [worker_of(store, timers, limits) for limits in ({}, {}, {"all": "1/s"})]
    assert [counts for _, counts in checks] == [[1], [2], [3]]
    timers.advance(INTERVAL)
    assert [counts for _, counts in checks] == [[1, 3], [2, 3], [3, 3]]


def test_a_worker_that_has_stopped_is_counted_no_more_and_one_that_reconnects_is_the_same(clock, timers):
    store = MemoryStore(clock)
    (first, counts), (second, _) = worker_of(store, timers), worker_of(store, timers)
    first.close()
    first.start(BlockingRunner())
    assert counts == [1, 2]
    second.close()
    for _ in range(2):
        timers.advance(INTERVAL)
    assert counts[-1] == 1


def test_an_outage_changes_no_count(clock, timers):
    store = MemoryStore(clock)
    check, counts = worker_of(store, timers)
    check._on_reply(StoreUnavailable("memory", "down"))
    assert counts == [1]
