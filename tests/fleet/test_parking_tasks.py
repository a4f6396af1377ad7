"""Promise 5 for parked tasks: no task is lost or duplicated. A parked task is the task that was sent."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import chain, chord, group
from processes import wait_until

HOUR = {"tenants": {"acme": {"rate": "1/h", "capacity": 1}}}
FAST = {"tenants": {"acme": {"rate": "100/s", "capacity": 10}}}


@pytest.fixture
def parking(fleet):
    """Yield a fleet without workers that parks every task of acme but the first, until ``speed_up(parking)``."""
    fleet.configure(bucketflow_on_limit="park", limits=HOUR)
    return fleet


def spend(fleet):
    fleet.send("work", "first", headers={"tenant": "acme"})
    fleet.records.wait("starts", 1)


def speed_up(fleet):
    fleet.throttle().set_limits(FAST)


def acme(fleet, name, *args, **kwargs):
    return fleet.app.signature(f"workloads.{name}", args, kwargs, app=fleet.app).set(headers={"tenant": "acme"})


def park_and_run(fleet, signature, **options):
    """Send *signature*, wait until it is parked, and let it run."""
    result = signature.apply_async(**options)
    fleet.wait_parked(1)
    speed_up(fleet)
    return result


@pytest.mark.parametrize("name", ["work", "late"])
def test_a_parked_task_keeps_every_attribute_of_its_request(parking, name):
    parking.worker()
    options = {
        "task_id": "chosen-by-the-user",
        "priority": 3,
        "expires": datetime.now(timezone.utc) + timedelta(minutes=5),
        "reply_to": "a-reply-queue",
        "root_id": "the-root",
        "parent_id": "the-parent",
        "group_id": "the-group",
        "shadow": "another name",
        "soft_time_limit": 50,
        "time_limit": 60,
        "retries": 1,
        "headers": {"tenant": "acme", "custom": {"trace": [1, 2, 3]}, "stamps": {"monitor": ["x"]}},
    }
    unthrottled = acme(parking, name, "acme", seconds=0.0).apply_async(**options)
    [expected] = parking.records.starts(1, id=unthrottled.id)
    wait_until(lambda: unthrottled.status == "SUCCESS")

    result = park_and_run(parking, acme(parking, name, "acme", seconds=0.0), **options)

    _, start = parking.records.starts(2, id=result.id)
    assert start == {**expected, "at": start["at"]}
    assert (start["args"], start["retries"], start["custom"]) == (["acme"], 1, {"trace": [1, 2, 3]})
    assert parking.records.deliveries()[result.id] == 2
    assert result.get(timeout=5) == "acme"


@pytest.mark.parametrize(("serializer", "compression"), [("json", None), ("pickle", "gzip"), ("yaml", "gzip")])
def test_a_parked_task_keeps_its_arguments_in_every_encoding(parking, serializer, compression):
    parking.configure(
        accept_content=["json", "pickle", "yaml"],
        task_serializer=serializer,
        result_serializer=serializer,
        task_compression=compression,
    )
    parking.worker()
    spend(parking)
    argument = {1, 2, 3} if serializer == "pickle" else {"text": "ünïcode " * 100}

    result = park_and_run(parking, acme(parking, "work", argument))

    assert result.get(timeout=10) == argument
    [start] = parking.records.starts(1, id=result.id)
    assert start["compression"] == (compression and "application/x-gzip")


def test_callbacks_and_errbacks_of_a_parked_task_are_called(parking):
    parking.worker()
    spend(parking)
    link = parking.app.signature("workloads.linked", ("mark",), app=parking.app)
    acme(parking, "add", 1, 2).apply_async(link=link)
    failed = acme(parking, "fail", "acme").apply_async(link_error=parking.app.signature("workloads.errback"))
    parking.wait_parked(2)

    speed_up(parking)

    [callback] = parking.records.wait("callbacks", 1)
    assert (callback["result"], callback["mark"]) == (3, "mark")
    [errback] = parking.records.wait("errbacks", 1)
    assert (errback["id"], errback["error"], errback["text"]) == (failed.id, "RuntimeError", "acme always fails")


def test_chain_group_and_chord_work_with_parked_tasks(parking):
    parking.configure(limits={"tenants": {"acme": {"rate": "10/s", "capacity": 1}}})
    parking.worker("prefork")

    def add(*numbers):
        return acme(parking, "add", *numbers)

    spend(parking)
    chained = chain(add(1, 1), add(1), add(1)).apply_async()
    assert chained.get(timeout=10) == 4
    summed = chord(group(add(number, number) for number in range(4)), acme(parking, "total")).apply_async()
    assert summed.get(timeout=10) == 12

    deliveries = parking.records.deliveries()
    assert set(deliveries.values()) == {1}
    assert parking.records.count("starts") == len(deliveries) == 1 + 3 + 4 + 1
    assert parking.stats()["dispatched"] >= 5


@pytest.mark.parametrize("acks_late", [False, True])
def test_parking_does_not_count_as_a_retry(parking, acks_late):
    parking.configure(limits={"tenants": {"acme": {"rate": "10/s", "capacity": 1}}}, task_acks_late=acks_late)
    parking.worker()
    spend(parking)
    results = [acme(parking, name).apply_async() for name in ("stubborn", "shaky")]

    assert [result.get(timeout=10) for result in results] == [2, 2]

    for result in results:
        starts = parking.records.starts(3, id=result.id)
        assert [start["retries"] for start in starts] == [0, 1, 2]
        assert {start["tenant"] for start in starts} == {"acme"}
        assert parking.records.deliveries()[result.id] == 3  # one for each try, as without a limit
    assert parking.parked() == 0


@pytest.mark.timing
def test_a_task_with_a_countdown_is_parked_when_it_is_due(parking):
    parking.worker()
    sent = time.time()
    due = acme(parking, "work", "due").apply_async(countdown=1.5)
    spend(parking)
    acme(parking, "work", "at once").apply_async()
    parking.wait_parked(1)
    assert time.time() < sent + 1.4
    parking.wait_parked(2)

    speed_up(parking)

    [start] = parking.records.starts(1, id=due.id)
    assert start["at"] >= sent + 1.49
    assert parking.records.deliveries()[due.id] == 1


REJECTING = """
    from celery.exceptions import Ignore, Reject
    from workloads import app, record

    @app.task(name="workloads.picky", bind=True, acks_late=True)
    def picky(self, how):
        redelivered = self.request.delivery_info["redelivered"]
        record("tries", redelivered=bool(redelivered))
        if not redelivered:
            raise Reject("not now", requeue=how == "requeue")
        return "at last"

    @app.task(name="workloads.ignoring", bind=True)
    def ignoring(self):
        raise Ignore
"""


def test_reject_requeues_or_drops_a_parked_task(parking):
    parking.module("rejecting", REJECTING)
    parking.worker(app="rejecting")
    spend(parking)
    [dropped] = parking.send("picky", "drop", headers={"tenant": "acme"})
    parking.wait_parked(1)
    [again] = parking.send("picky", "requeue", headers={"tenant": "acme"})
    parking.wait_parked(2)

    speed_up(parking)

    assert again.get(timeout=5) == "at last"
    parking.wait_parked(0)
    starts = parking.records.of("starts")[1:]
    assert [start["id"] for start in starts] == [dropped.id, again.id, again.id]
    assert [one["redelivered"] for one in parking.records.of("tries")] == [False, False, True]


def test_ignore_settles_a_parked_task(parking):
    parking.module("rejecting", REJECTING)
    parking.worker(app="rejecting")
    spend(parking)

    result = park_and_run(parking, acme(parking, "ignoring"))

    parking.records.starts(1, id=result.id)
    with parking.server.client(db=1) as store:
        wait_until(lambda: not [key for key in store.scan_iter() if b":messages" in key or b"park:worker:" in key])


def test_parked_tasks_that_no_live_worker_can_run_delay_no_other_task_and_are_shown(fleet):
    fleet.configure(
        bucketflow_on_limit="park",
        bucketflow_tenant="tenant",
        bucketflow_lease=2.0,
        limits={"tenants": {"*": {"rate": "1/h", "capacity": 1}}},
    )
    other = fleet.module("other", "from workloads import app\n\n@app.task\ndef other(tenant): pass")
    leaving = fleet.worker(app=other)
    unknown = fleet.app.signature("other.other", app=fleet.app)
    for number in range(600):
        unknown.apply_async((f"t{number % 300}",))
    fleet.wait_parked(300)
    leaving.kill()
    fleet.throttle().set_limits({"tenants": {"*": "10/s"}})  # all 300 tenants are ready now
    staying = fleet.worker()

    fleet.send("work", "acme", times=5)

    assert len(fleet.records.starts(5, task="workloads.work")) == 5
    staying.wait_log("parked tasks wait that no live worker can run: other.other")
    assert fleet.throttle().backlog()["celery"].unclaimed == {"other.other": 300}
    assert fleet.throttle().purge("celery", task="other.other") == 300
    assert fleet.parked() == 0
