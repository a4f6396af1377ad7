"""Parked tasks that do not start: revoked, expired, over max_wait, too costly, purged. None of them costs a token."""

from __future__ import annotations

import time

import pytest
from celery import chord, group
from celery.exceptions import ChordError, TaskRevokedError
from processes import wait_until

from bucketflow_celery import CostExceedsCapacity, ThrottleTimeout

HOUR = {"rate": "1/h", "capacity": 1}
FEW = {"queues": {"*": {"rate": "1/h", "capacity": 10}}}


@pytest.fixture
def parking(fleet):
    """Yield a fleet of one worker that parks all tasks until ``resume(parking)``, after which ten may run."""
    fleet.configure(bucketflow_on_limit="park", limits=FEW)
    fleet.throttle().pause(queue="celery")
    fleet.worker()
    return fleet


def resume(fleet):
    fleet.throttle().resume(queue="celery")


def tokens(fleet):
    [queue] = fleet.throttle().peek("celery", "workloads.work")
    return queue.tokens


def only_ran(fleet, kept):
    """Assert that only *kept* have run and taken tokens, and that the backlog is empty."""
    starts = fleet.records.wait("starts", len(kept))
    fleet.wait_parked(0)
    assert sorted(start["id"] for start in starts) == sorted(result.id for result in kept)
    wait_until(lambda: tokens(fleet) == pytest.approx(10 - len(kept), abs=0.01))


@pytest.mark.parametrize("terminate", [False, True])
def test_a_parked_task_that_is_revoked_does_not_run(parking, terminate):
    kept = parking.send("work", times=2)
    revoked = parking.send("work", times=3)
    kept += parking.send("work", times=2)
    parking.wait_parked(7)
    for result in revoked:
        result.revoke(terminate=terminate)
    assert parking.inspect().ping()  # the worker has processed the revocations

    resume(parking)

    only_ran(parking, kept)
    for result in revoked:
        with pytest.raises(TaskRevokedError):
            result.get(timeout=5)


def test_a_parked_task_that_expires_does_not_run(parking):
    expired = parking.send("work", times=3, expires=0.5, link_error=parking.app.signature("workloads.errback"))
    kept = parking.send("work", times=2, expires=60)
    parking.wait_parked(5)
    time.sleep(0.5)

    resume(parking)

    only_ran(parking, kept)
    wait_until(lambda: {result.status for result in expired} == {"REVOKED"})


def test_a_parked_task_that_waits_longer_than_max_wait_fails(parking):
    errback = parking.app.signature("workloads.errback")
    impatient = parking.send("impatient", times=3, link_error=errback)
    kept = parking.send("work", times=2)
    parking.wait_parked(5)
    time.sleep(0.6)

    resume(parking)

    only_ran(parking, kept)
    for result in impatient:
        with pytest.raises(ThrottleTimeout) as failure:
            result.get(timeout=5)
        assert (failure.value.level, failure.value.max_wait) == ("queue", 0.5)
        assert 0.5 <= failure.value.wait < 5
    errbacks = parking.records.wait("errbacks", 3)
    assert sorted((one["id"], one["error"]) for one in errbacks) == sorted(
        (result.id, "ThrottleTimeout") for result in impatient
    )


def test_a_parked_task_fails_soon_after_max_wait_though_no_task_can_start(fleet):
    fleet.configure(bucketflow_on_limit="park", limits={"tenants": {"acme": {"rate": "1/m", "capacity": 1}}})
    fleet.worker()
    [first] = fleet.send("impatient", headers={"tenant": "acme"})
    assert first.get(timeout=5) is None

    waiting = fleet.send("impatient", times=3, headers={"tenant": "acme"})

    outcomes = [result.get(timeout=3, propagate=False) for result in waiting]
    assert {type(outcome) for outcome in outcomes} == {ThrottleTimeout}


def test_a_chord_fails_if_a_parked_header_task_fails_without_running(parking):
    part = parking.app.signature("workloads.impatient")
    body = parking.app.signature("workloads.total").on_error(parking.app.signature("workloads.errback"))
    result = chord(group([part, part.clone()], app=parking.app), app=parking.app)(body)
    parking.wait_parked(2)
    time.sleep(0.6)

    resume(parking)

    failure = result.get(timeout=10, propagate=False)
    assert isinstance(failure, ChordError)
    assert "ThrottleTimeout" in str(failure)


def test_a_parked_task_whose_cost_exceeds_a_lowered_capacity_fails(parking):
    [costly] = parking.send("heavy", 8, link_error=parking.app.signature("workloads.errback"))
    kept = parking.send("heavy", 5)
    parking.wait_parked(2)

    parking.throttle().set_limits({"queues": {"*": {"rate": "1/h", "capacity": 5}}})
    resume(parking)

    with pytest.raises(CostExceedsCapacity) as failure:
        costly.get(timeout=5)
    assert (failure.value.key, failure.value.cost, failure.value.capacity) == ("q:celery", 8, 5)
    assert [result.get(timeout=5) for result in kept] == [5]
    assert parking.records.wait("errbacks", 1)[0]["error"] == "CostExceedsCapacity"


def test_purged_tasks_do_not_run_and_the_others_do(parking):
    purged = parking.send("work", times=3, headers={"tenant": "acme"})
    kept = parking.send("work", times=3)
    parking.wait_parked(6)

    assert parking.throttle().purge("celery", tenant="acme") == 3
    resume(parking)

    only_ran(parking, kept)
    assert {result.status for result in purged} == {"PENDING"}


def test_terminate_ends_a_task_that_was_parked(fleet):
    fleet.configure(bucketflow_on_limit="park", limits=FEW)
    fleet.throttle().pause(queue="celery")
    fleet.worker("prefork")
    [result] = fleet.send("work", "long", 60)
    [other] = fleet.send("work", "short")
    fleet.wait_parked(2)
    resume(fleet)
    fleet.records.starts(1, id=result.id)

    result.revoke(terminate=True)

    with pytest.raises(TaskRevokedError):
        result.get(timeout=5)
    only_ran(fleet, [result, other])


def test_a_time_limit_ends_a_task_that_was_parked(fleet):
    fleet.configure(bucketflow_on_limit="park", limits=FEW)
    fleet.throttle().pause(queue="celery")
    fleet.worker("prefork")
    [result] = fleet.send("work", "long", 60, time_limit=1)
    fleet.wait_parked(1)

    resume(fleet)

    assert type(result.get(timeout=5, propagate=False)).__name__ == "TimeLimitExceeded"
    only_ran(fleet, [result])
