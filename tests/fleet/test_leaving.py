"""Tasks that do not start: revoked, expired, over max_wait, too costly, not due yet. None of them costs a token."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from celery import chord, group
from celery.exceptions import ChordError, TaskRevokedError
from processes import wait_until

from bucketflow_celery import CostExceedsCapacity, ThrottleTimeout

HOUR = {"rate": "1/h", "capacity": 1}


def level(fleet, name):
    """Return the view of the level *name* on the path of acme's tasks ``work``."""
    views = fleet.throttle().peek("celery", "workloads.work", "acme")
    return next(view for view in views if view.level.name == name)


def acme(fleet, times=1, **options):
    return fleet.send("work", times=times, headers={"tenant": "acme"}, **options)


@pytest.mark.timing
def test_a_held_task_that_is_revoked_does_not_run(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "2/s", "capacity": 1}}})
    fleet.worker()
    _, revoked, kept = fleet.send("work", times=3)
    wait_until(lambda: fleet.stats()["waiting"] == 2)

    revoked.revoke()

    starts = fleet.records.wait("starts", 2)
    assert starts[1]["id"] == kept.id
    assert starts[1]["at"] - starts[0]["at"] < 0.9  # it has moved up to the reservation of the revoked task
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=5)


@pytest.mark.timing
def test_a_deferred_task_that_is_revoked_cancels_its_reservation(fleet):
    fleet.configure(limits={"tenants": {"*": {"rate": "2/s", "capacity": 1}}}, bucketflow_max_countdown=1.0)
    fleet.worker()
    acme(fleet)
    revoked = acme(fleet, times=4)
    fleet.records.wait("refusals", 4)
    assert level(fleet, "tenant").reserved_for > 1

    for result in revoked:
        result.revoke()

    wait_until(lambda: level(fleet, "tenant").reserved_for == 0, timeout=1)
    assert {result.status for result in revoked} == {"REVOKED"}
    assert fleet.records.count("starts") == 1


@pytest.mark.timing
@pytest.mark.parametrize("level_name", ["queues", "tenants"])
def test_a_task_that_expires_while_it_waits_spends_no_token(fleet, level_name):
    fleet.configure(limits={level_name: {"*": {"rate": "2/s", "capacity": 2}}})
    fleet.worker()
    acme(fleet, times=2)
    fleet.records.wait("starts", 2)
    expired = acme(fleet, times=3, expires=0.3)
    [kept] = acme(fleet)

    wait_until(lambda: all(result.status == "REVOKED" for result in expired))
    last = fleet.records.wait("starts", 3)[-1]

    assert last["id"] == kept.id
    wait_until(lambda: level(fleet, level_name.removesuffix("s")).tokens > 1.9)
    assert fleet.records.count("starts") == 3


@pytest.mark.timing
def test_a_task_with_a_countdown_requests_tokens_when_it_is_due(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "5/s", "capacity": 2}}})
    fleet.worker()
    sent = time.time()
    due = {result.id for result in fleet.send("work", "due", times=4, countdown=1)}
    at_once = {result.id for result in fleet.send("work", "at once", times=2)}

    starts = fleet.records.wait("starts", 6)

    # The bucket is full: tasks that are not due hold neither tokens nor reservations.
    assert {start["id"] for start in starts[:2]} == at_once
    assert starts[1]["at"] - starts[0]["at"] < 0.2
    assert {start["id"] for start in starts[2:]} == due
    assert all(start["at"] >= sent + 0.99 for start in starts[2:])
    assert starts[-1]["at"] - starts[2]["at"] > 0.3


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_a_task_that_would_wait_longer_than_max_wait_fails_at_once(fleet, on_limit):
    fleet.configure(limits={"tenants": {"*": HOUR}}, bucketflow_max_wait=60, bucketflow_on_limit=on_limit)
    fleet.worker()
    acme(fleet)
    fleet.records.wait("starts", 1)
    [result] = acme(fleet, link_error=fleet.app.signature("workloads.errback"))

    with pytest.raises(ThrottleTimeout) as failure:
        result.get(timeout=5)

    assert (failure.value.level, failure.value.max_wait) == ("tenant", 60)
    assert failure.value.wait == pytest.approx(3600, abs=10)
    [errback] = fleet.records.wait("errbacks", 1)
    assert (errback["id"], errback["error"]) == (result.id, "ThrottleTimeout")
    assert level(fleet, "tenant").reserved_for == 0
    assert fleet.records.deliveries()[result.id] == 1


@pytest.mark.timing
def test_max_wait_of_a_task_applies_to_held_tasks(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "4/s", "capacity": 1}}})
    fleet.worker()
    results = fleet.send("impatient", times=8)
    patient = fleet.send("work", times=2)

    outcomes = [result.get(timeout=10, propagate=False) for result in results]

    failed = [outcome for outcome in outcomes if isinstance(outcome, ThrottleTimeout)]
    assert 5 <= len(failed) <= 6  # one starts at once, one or two within half a second
    assert [result.get(timeout=5) for result in patient] == [None, None]
    assert fleet.records.count("starts") == 8 - len(failed) + 2


@pytest.mark.parametrize(
    ("limits", "name", "error"),
    [({"tenants": {"*": HOUR}}, "impatient", "ThrottleTimeout"), ({"all": HOUR}, "heavy", "CostExceedsCapacity")],
)
def test_a_chord_fails_if_a_header_task_fails_without_running(fleet, limits, name, error):
    fleet.configure(limits=limits)
    fleet.worker()
    acme(fleet)
    fleet.records.wait("starts", 1)
    part = fleet.app.signature(f"workloads.{name}", (2,)).set(headers={"tenant": "acme"})
    other = fleet.app.signature(f"workloads.{name}", (2,)).set(headers={"tenant": "acme"})
    body = fleet.app.signature("workloads.total").on_error(fleet.app.signature("workloads.errback"))

    result = chord(group([part, other], app=fleet.app), app=fleet.app)(body)

    failure = result.get(timeout=10, propagate=False)
    assert isinstance(failure, ChordError)
    assert error in str(failure)
    assert fleet.records.wait("errbacks", 1)[0]["id"] == result.id


def test_a_cost_above_a_capacity_fails_at_once(fleet):
    fleet.configure(limits={"all": {"rate": "100/s", "capacity": 50}, "queues": {"*": {"rate": "10/s", "capacity": 5}}})
    fleet.worker()
    [costly] = fleet.send("heavy", 6, link_error=fleet.app.signature("workloads.errback"))
    [fair] = fleet.send("heavy", 5)

    with pytest.raises(CostExceedsCapacity) as failure:
        costly.get(timeout=5)

    assert (failure.value.key, failure.value.cost, failure.value.capacity) == ("q:celery", 6, 5)
    assert fair.get(timeout=5) == 5
    assert fleet.records.wait("errbacks", 1)[0]["error"] == "CostExceedsCapacity"
    assert set(fleet.records.deliveries().values()) == {1}


@pytest.mark.timing
def test_cost_is_taken_from_the_argument(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "10/s", "capacity": 5}}})
    fleet.worker()
    fleet.send("heavy", 5, times=3)
    fleet.send("heavy", 0, times=5)

    starts = fleet.records.wait("starts", 8)

    costly = sorted(start["at"] for start in starts if start["args"] == [5])
    assert [later - sooner for sooner, later in pairwise(costly)] == pytest.approx([0.5, 0.5], abs=0.15)
    assert max(start["at"] for start in starts if start["args"] == [0]) < costly[1]  # a task of cost 0 never waits


def test_a_task_whose_cost_or_tenant_cannot_be_determined_fails_with_config_error(fleet):
    fleet.configure(limits={"queues": {"*": "100/s"}, "tenants": {"*": "100/s"}})
    fleet.worker()
    [cost] = fleet.send("heavy", "many")
    [tenant] = fleet.send("ship", {"no": "account"})

    for result, entry in ((cost, "cost"), (tenant, "tenant")):
        with pytest.raises(Exception, match=entry) as failure:
            result.get(timeout=5)
        assert type(failure.value).__name__ == "ConfigError"
