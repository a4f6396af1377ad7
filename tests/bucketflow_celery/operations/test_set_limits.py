"""``Throttle.limits`` and ``set_limits``: a fresh view, and no lost update."""

from __future__ import annotations

import multiprocessing
import os
import threading

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker

from bucketflow import ConfigError, StoreUnavailable
from bucketflow_celery import LimitsChanged, Throttle
from bucketflow_celery.testing import MemoryStore

CONFIGURED = {"tenants": {"*": "5/s"}}


def admin(store):
    return Throttle(Celery("admin", set_as_current=False, broker="memory://"), store=store, limits=CONFIGURED)


@pytest.fixture
def admins():
    """Return two throttles with one store, as two processes have them."""
    store = MemoryStore()
    return admin(store), admin(store)


def rates(throttle):
    return {name: limit.fill_rate for name, limit in throttle.limits.levels["tenant"].items()}


def change(throttle, tenant, rate, *, after_read=lambda: None):
    """Set the limit of one tenant, as the guide shows it; return how often the table was read."""
    reads = 0
    while True:
        limits = throttle.limits
        reads += 1
        after_read()
        table = limits.dump()
        table["tenants"][tenant] = rate
        try:
            throttle.set_limits(table, version=limits.version)
        except LimitsChanged:
            continue
        return reads


def test_every_process_sees_new_limits_at_once(admins):
    one, two = admins
    one.set_limits({"tenants": {"a": "1/s"}})
    assert rates(one) == rates(two) == {"a": 1}
    two.set_limits(None)
    assert rates(one) == rates(two) == {"*": 5}
    one.pause(tenant="a")
    assert two.limits.paused == {"tenant:a"}


def test_a_table_that_has_not_changed_is_not_parsed_again(admins):
    one, two = admins
    assert one.limits is one.limits
    two.set_limits({"all": "1/s"})
    assert one.limits is one.limits


def test_the_version_of_configured_limits_is_empty(admins):
    one, two = admins
    assert one.limits.version == ""
    one.set_limits({"all": "1/s"}, version="")
    assert one.limits.version == two.limits.version != ""
    with pytest.raises(LimitsChanged):
        two.set_limits({"all": "2/s"}, version="")


def test_limits_made_from_an_older_version_are_not_set(admins):
    one, two = admins
    read = one.limits
    two.set_limits({"tenants": {"b": "7/s"}})
    with pytest.raises(LimitsChanged) as caught:
        one.set_limits({"tenants": {"a": "1/s"}}, version=read.version)
    assert (caught.value.expected, caught.value.current) == (read.version, two.limits.version)
    assert rates(one) == rates(two) == {"b": 7}


def test_limits_without_a_version_replace_any_table(admins):
    one, two = admins
    one.set_limits({"tenants": {"a": "1/s"}})
    two.set_limits({"tenants": {"b": "2/s"}})
    assert rates(one) == {"b": 2}


def test_two_admins_lose_no_update(admins):
    one, two = admins
    interferences = [lambda: two.pause(tenant="c"), lambda: change(two, "b", "10/s")]

    def interfere():
        if interferences:
            interferences.pop()()

    assert change(one, "a", "10/s", after_read=interfere) == 3
    assert rates(one) == rates(two) == {"*": 5, "a": 10, "b": 10}


def test_many_admins_lose_no_update():
    store = MemoryStore()
    throttles = [admin(store) for _ in range(6)]
    barrier = threading.Barrier(len(throttles))

    def run(throttle, number):
        barrier.wait()
        for turn in range(5):
            change(throttle, f"t{number}/{turn}", "9/s")

    workers = [threading.Thread(target=run, args=one) for one in zip(throttles, range(6), strict=True)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert rates(throttles[0]) == {"*": 5} | {f"t{number}/{turn}": 9 for number in range(6) for turn in range(5)}


@pytest.mark.parametrize("version", [0, 1.5, b"a1", CONFIGURED])
def test_a_version_of_another_type_is_an_error(admins, version):
    with pytest.raises(ConfigError, match=r"throttle\.limits\.version"):
        admins[0].set_limits({}, version=version)
    assert admins[0].limits.version == ""


def test_limits_cannot_be_read_while_the_store_is_away():
    class Away(MemoryStore):
        def limits(self):
            raise StoreUnavailable("the store", "no answer")

    with pytest.raises(StoreUnavailable):
        _ = admin(Away()).limits


class Counting(MemoryStore):
    reads = 0

    def limits(self):
        self.reads += 1
        return super().limits()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_worker_goes_by_what_it_has_read_and_its_children_read_anew():
    store = Counting()
    throttle = admin(store)

    def reads_in_child(answers):
        before = store.reads
        _ = throttle.limits
        answers.put(store.reads - before)

    with start_worker(throttle.app, perform_ping_check=False):
        before = store.reads
        assert rates(throttle) == {"*": 5}
        assert store.reads == before
        throttle.set_limits({"tenants": {"*": "6/s"}})
        assert rates(throttle) == {"*": 6}, "the process that set them knows them"
        context = multiprocessing.get_context("fork")
        answers = context.SimpleQueue()
        child = context.Process(target=reads_in_child, args=(answers,))
        child.start()
        assert answers.get() == 1
        child.join()
    admin(store).set_limits({"tenants": {"*": "7/s"}})
    assert rates(throttle) == {"*": 7}, "after the worker has stopped, nothing keeps them up to date"
