"""Tasks that fail without running: hooks and errbacks are called as after a failure in a pool, outside of the loop."""

from __future__ import annotations

import time

import pytest
from processes import wait_until

from bucketflow_celery import ThrottleTimeout

HOUR = {"rate": "1/h", "capacity": 1}
SOURCE = """
import threading
import time

from celery import Task
from workloads import app, record


class Watched(Task):
    def on_failure(self, error, task_id, args, kwargs, info):
        record("hooks", id=task_id, hook="on_failure", error=type(error).__name__, current=self.request.id)

    def after_return(self, status, result, task_id, args, kwargs, info):
        if status == "FAILURE":
            record("hooks", id=task_id, hook="after_return", error=type(result).__name__, current=self.request.id)


@app.task(base=Watched)
def watched(tenant=None):
    return tenant


@app.task
def slow(request, error, traceback):
    time.sleep(2)
    record("slow", id=request.id, thread=threading.current_thread().name)
"""


def send(fleet, **options):
    return fleet.app.signature("watched.watched", app=fleet.app).apply_async(headers={"tenant": "acme"}, **options)


def hooks(fleet, number):
    return sorted((one["id"], one["hook"], one["error"], one["current"]) for one in fleet.records.wait("hooks", number))


def expected(results, error="ThrottleTimeout"):
    calls = [(result.id, hook, error, result.id) for result in results for hook in ("on_failure", "after_return")]
    return sorted(calls)


@pytest.mark.parametrize(
    ("pool", "on_limit"), [("prefork", "retry"), ("threads", "hold"), ("solo", "park"), ("gevent", "retry")]
)
def test_a_slow_errback_delays_neither_other_tasks_nor_remote_control(fleet, pool, on_limit):
    pytest.importorskip("gevent")
    fleet.configure(limits={"tenants": {"*": HOUR}}, bucketflow_max_wait=60, bucketflow_on_limit=on_limit)
    worker = fleet.worker(pool, app=fleet.module("watched", SOURCE))
    assert send(fleet).get(timeout=10) is None

    failing = [send(fleet, link_error=fleet.app.signature("watched.slow")) for _ in range(12)]
    outcomes = [result.get(timeout=10, propagate=False) for result in failing]
    [other] = fleet.send("add", 1, 2)

    assert other.get(timeout=10) == 3
    assert fleet.app.control.ping(timeout=5, limit=1)
    wait_until(lambda: fleet.server.client(db=0).hlen("unacked") == 0)
    assert fleet.records.count("slow") < 12  # they would take 24 s
    assert {type(outcome) for outcome in outcomes} == {ThrottleTimeout}
    assert set(expected(failing[:1])) <= set(hooks(fleet, 2))
    assert worker.log.count("task failed without running: task=watched.watched id=") == 12
    assert fleet.stats()["failed"] == 12


def test_hooks_of_a_parked_task_that_fails_when_it_is_dispatched_are_called(fleet):
    fleet.configure(bucketflow_on_limit="park", bucketflow_max_wait=0.5)
    fleet.throttle().pause()
    worker = fleet.worker(app=fleet.module("watched", SOURCE))
    failing = [send(fleet, link_error=fleet.app.signature("workloads.errback")) for _ in range(3)]
    fleet.wait_parked(3)
    time.sleep(0.6)
    fleet.throttle().resume()

    assert hooks(fleet, 6) == expected(failing)
    assert {one["id"] for one in fleet.records.wait("errbacks", 3)} == {result.id for result in failing}
    assert worker.log.count("tenant=acme level=") == 3
    assert fleet.stats()["failed"] == 3
    assert fleet.parked() == 0


@pytest.mark.parametrize("on_limit", ["retry", "park"])
def test_an_errback_that_is_sent_as_a_task_waits_for_the_limit_that_its_task_has_failed_at(fleet, on_limit):
    fleet.configure(
        limits={"queues": {"*": {"rate": "1/s", "capacity": 1}}}, bucketflow_max_wait=0.5, bucketflow_on_limit=on_limit
    )
    fleet.worker()
    errback = fleet.app.signature("workloads.linked", ("errback",))
    results = fleet.send("work", times=4, link_error=errback)

    outcomes = [result.get(timeout=10, propagate=False) for result in results]

    failed = [result.id for result, outcome in zip(results, outcomes, strict=True) if outcome is not None]
    assert len(failed) >= 2
    callbacks = fleet.records.wait("callbacks", len(failed))
    assert sorted(one["result"] for one in callbacks) == sorted(failed)


def test_a_worker_that_shuts_down_ends_its_failed_tasks_first(fleet):
    fleet.configure(limits={"tenants": {"*": HOUR}}, bucketflow_max_wait=60)
    worker = fleet.worker("prefork", app=fleet.module("watched", SOURCE))
    assert send(fleet).get(timeout=10) is None
    failing = [send(fleet, link_error=fleet.app.signature("watched.slow")) for _ in range(2)]
    wait_until(lambda: worker.log.count("task failed without running") == 2)

    worker.terminate()
    worker.wait_end()

    assert {type(result.get(timeout=1, propagate=False)) for result in failing} == {ThrottleTimeout}
    assert hooks(fleet, 4) == expected(failing)
    assert [one["thread"] for one in fleet.records.of("slow")] == ["bucketflow-hooks"] * 2
