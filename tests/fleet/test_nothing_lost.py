"""Promise 5: no task is lost or duplicated. A deferred task is the task that was sent, also as part of a canvas."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest
from celery import chain, chord, group

#: Defers every task of a tenant but the first, for about a second.
DEFERRING = {"tenants": {"*": {"rate": "2/s", "capacity": 1}}}


@pytest.fixture
def deferring(fleet):
    """Yield a fleet of one worker that defers every task of a tenant but the first."""
    fleet.configure(limits=DEFERRING, bucketflow_tenant=None)
    fleet.worker()
    return fleet


def spend(fleet, tenant="acme", times=1):
    """Run *times* tasks of *tenant*, so that its bucket is empty and its next task is deferred."""
    fleet.send("work", times=times, headers={"tenant": tenant})
    fleet.records.wait("starts", 1)


def acme(fleet, name, *args, **kwargs):
    return fleet.app.signature(f"workloads.{name}", args, kwargs, app=fleet.app).set(headers={"tenant": "acme"})


def was_deferred(fleet, task_id):
    return fleet.records.deliveries()[task_id] == 2


def test_a_deferred_task_keeps_every_attribute_of_its_request(deferring):
    spend(deferring)
    expires = datetime.now(timezone.utc) + timedelta(minutes=5)
    result = acme(deferring, "work", "acme", seconds=0.0).apply_async(
        task_id="chosen-by-the-user",
        priority=3,
        expires=expires,
        reply_to="a-reply-queue",
        root_id="the-root",
        parent_id="the-parent",
        group_id="the-group",
        shadow="another name",
        soft_time_limit=50,
        time_limit=60,
        retries=1,
        headers={"tenant": "acme", "custom": {"trace": [1, 2, 3]}, "stamps": {"monitor": ["x"]}},
    )

    [start] = deferring.records.starts(1, id=result.id)

    assert was_deferred(deferring, result.id)
    assert start["args"] == ["acme"]
    assert start["kwargs"] == {"seconds": 0.0}
    assert start["retries"] == 1
    assert (start["tenant"], start["custom"], start["stamped"]) == ("acme", {"trace": [1, 2, 3]}, {"monitor": ["x"]})
    assert (start["priority"], start["reply_to"], start["correlation_id"]) == (3, "a-reply-queue", result.id)
    assert (start["root_id"], start["parent_id"], start["group"]) == ("the-root", "the-parent", "the-group")
    assert datetime.fromisoformat(start["expires"]) == expires
    assert start["timelimit"] == [60, 50]
    assert start["shadow"] == "another name"
    assert result.get(timeout=5) == "acme"


@pytest.mark.parametrize("serializer", ["json", "pickle", "yaml"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_deferred_task_keeps_its_arguments_in_every_encoding(fleet, serializer, compression):
    fleet.configure(
        limits=DEFERRING,
        accept_content=["json", "pickle", "yaml"],
        task_serializer=serializer,
        result_serializer=serializer,
        task_compression=compression,
    )
    fleet.worker()
    spend(fleet)
    argument = {1, 2, 3} if serializer == "pickle" else {"text": "ünïcode " * 100}

    result = acme(fleet, "work", argument).apply_async()

    assert result.get(timeout=10) == argument
    assert was_deferred(fleet, result.id)
    [start] = fleet.records.starts(1, id=result.id)
    assert start["compression"] == (compression and "application/x-gzip")


def test_callbacks_of_a_deferred_task_are_called(deferring):
    spend(deferring)
    link = deferring.app.signature("workloads.linked", ("mark",), app=deferring.app)
    result = acme(deferring, "add", 1, 2).apply_async(link=link)

    [callback] = deferring.records.wait("callbacks", 1)

    assert was_deferred(deferring, result.id)
    assert (callback["result"], callback["mark"]) == (3, "mark")


def test_errbacks_of_a_deferred_task_are_called(deferring):
    spend(deferring)
    result = acme(deferring, "fail", "acme").apply_async(link_error=deferring.app.signature("workloads.errback"))

    [errback] = deferring.records.wait("errbacks", 1)

    assert was_deferred(deferring, result.id)
    assert (errback["id"], errback["error"], errback["text"]) == (result.id, "RuntimeError", "acme always fails")


def test_chain_group_and_chord_work_with_deferred_tasks(deferring):
    def add(*numbers):
        return acme(deferring, "add", *numbers)

    spend(deferring)
    chained = chain(add(1, 1), add(1), add(1)).apply_async()
    assert chained.get(timeout=10) == 4

    summed = chord(group(add(number, number) for number in range(4)), acme(deferring, "total")).apply_async()
    assert summed.get(timeout=15) == 12

    deliveries = deferring.records.deliveries()
    assert set(deliveries.values()) <= {1, 2}
    assert sum(times == 2 for times in deliveries.values()) >= 5
    assert deferring.records.count("starts") == len(deliveries) == 1 + 3 + 4 + 1


def test_a_retry_does_not_reuse_the_ticket_of_the_previous_try(deferring):
    spend(deferring)
    result = acme(deferring, "stubborn").apply_async()
    assert result.get(timeout=15) == 2

    first, *retries = deferring.records.starts(3, id=result.id)
    assert first["ticket"]
    for before, start in zip([first, *retries], retries, strict=False):
        # The previous ticket is used up, and its wait belongs to the previous try.
        assert start["ticket"] is None or start["ticket"]["since"] >= before["at"]


def test_deferral_does_not_count_as_a_retry(deferring):
    spend(deferring)
    results = [acme(deferring, name).apply_async() for name in ("stubborn", "shaky")]

    assert [result.get(timeout=15) for result in results] == [2, 2]

    for result in results:
        starts = deferring.records.starts(3, id=result.id)
        assert [start["retries"] for start in starts] == [0, 1, 2]
        assert {start["tenant"] for start in starts} == {"acme"}
        assert deferring.records.deliveries()[result.id] > 3


@pytest.mark.timing
def test_a_deferred_bound_task_keeps_its_id_and_arguments(fleet):
    fleet.worker()
    results = [fleet.send("sync", "acme", order)[0] for order in range(6)]

    assert [result.get(timeout=10) for result in results] == [
        [result.id, "acme", order] for order, result in enumerate(results)
    ]
    assert fleet.stats()["deferred"] == 4


@pytest.mark.parametrize("step", ["republisher.Republisher.publish", "celery_worker.CeleryWorker.acknowledge"])
def test_the_copy_is_published_before_the_delivery_is_acknowledged(fleet, step):
    fleet.configure(
        limits={"tenants": {"*": {"rate": "1/m", "capacity": 1}}}, broker_transport_options={"visibility_timeout": 2}
    )
    # The worker is killed just before the first step, or just before the second.
    fleet.module(
        "dying",
        f"""
        import os
        from workloads import app
        from bucketflow_celery.messages import republisher
        from bucketflow_celery.worker import celery_worker

        {step} = lambda *_: os._exit(9)
        """,
    )
    worker = fleet.worker(app="dying")
    spend(fleet)
    [lost] = fleet.send("work", "kept", headers={"tenant": "acme"})
    assert worker.wait_end() == 9

    fleet.throttle().set_limits({})
    time.sleep(2)
    fleet.worker()

    assert fleet.records.starts(1, id=lost.id)


def test_a_task_that_cannot_be_republished_still_runs(fleet):
    fleet.configure(limits=DEFERRING)
    fleet.module(
        "rejected",
        """
        from workloads import app
        from bucketflow_celery.messages.republisher import Republisher

        def publish(*_):
            raise ConnectionError("the broker accepts nothing")

        Republisher.publish = publish
        """,
    )
    fleet.worker(app="rejected")
    spend(fleet)
    sent = {result.id for result in fleet.send("work", times=3, headers={"tenant": "acme"})}

    starts = fleet.records.wait("starts", 4)

    assert sent <= {start["id"] for start in starts}
    assert set(fleet.records.deliveries().values()) == {1}
