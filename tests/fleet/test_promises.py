"""The promises of the throttle, on real workers and a real Redis. Promises 5 and 8 have files of their own."""

from __future__ import annotations

import time
from contextlib import contextmanager, suppress

import pytest
from processes import wait_until
from records import JITTER, excess, utilisation

RATE, CAPACITY = 20, 4
LIMIT = {"rate": f"{RATE}/s", "capacity": CAPACITY}
SLOW = {"rate": "1/s", "capacity": 1}


@pytest.mark.timing
@pytest.mark.parametrize(
    ("limits", "deliveries"),
    [
        ({"all": LIMIT}, 1),
        ({"queues": {"celery": LIMIT}}, 1),
        ({"tenants": {"*": LIMIT}}, 2),
        ({"tasks": {"workloads.work": LIMIT}}, 2),
    ],
    ids=["all", "queue", "tenant", "task"],
)
def test_a_limit_is_never_exceeded_and_fully_used_and_a_task_is_deferred_at_most_once(fleet, limits, deliveries):
    fleet.configure(limits=limits, bucketflow_tenant="tenant")
    fleet.start(2, "prefork")
    sent = sorted(result.id for result in fleet.send("work", "acme", times=44))

    starts = fleet.records.wait("starts", 44)

    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert utilisation(starts, CAPACITY, RATE) >= 0.9
    assert sorted(start["id"] for start in starts) == sent
    assert max(fleet.records.deliveries().values()) <= deliveries


def test_limits_are_not_exceeded_after_all_workers_were_killed(fleet):
    fleet.configure(
        limits={"queues": {"*": {"rate": "10/s", "capacity": 4}}, "tenants": {"acme": {"rate": "5/s", "capacity": 2}}},
        bucketflow_tenant="tenant",
        broker_transport_options={"visibility_timeout": 2},
    )
    workers = fleet.start(2)
    sent = {result.id for tenant in ("acme", "umbrella") for result in fleet.send("work", tenant, times=30)}
    fleet.records.wait("starts", 15)
    time.sleep(0.05)  # between two starts: Redis loses a message that it has sent and Kombu has yet to read

    for worker in workers:
        worker.kill()
    time.sleep(2.5)  # longer than the visibility timeout, so that all unacknowledged messages are redelivered together
    for worker in workers:
        worker.restart()
    wait_until(lambda: {start["id"] for start in fleet.records.of("starts")} == sent, timeout=30)

    starts = fleet.records.of("starts")
    assert excess(starts, 4, 10) <= JITTER
    assert excess([start for start in starts if start["args"] == ["acme"]], 2, 5) <= JITTER


def test_a_limit_is_not_exceeded_while_tasks_wait_for_slots(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "10/s", "capacity": 1}}})
    fleet.worker(concurrency=6)
    fleet.send("work", "acme", 0.8, times=24)

    starts = fleet.records.wait("starts", 24)

    # All slots become free at the same time. Tokens that were taken before that would be spent in one burst.
    assert excess(starts, 1, 10) <= JITTER


def test_a_task_that_waits_for_a_slot_holds_no_tokens(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "10/s", "capacity": 4}}})
    fleet.worker(concurrency=1)
    fleet.send("work", times=6)
    fleet.send("work", "long", 0.3, times=6)

    # Held tasks are admitted one by one as the slot becomes free, although the bucket fills faster.
    ahead = 0
    while fleet.records.count("starts") < 12:
        admitted = fleet.stats()["admitted"]
        ahead = max(ahead, admitted - fleet.records.count("starts"))

    assert ahead <= 1


@pytest.mark.timing
def test_a_task_refused_by_its_tenant_takes_no_tokens_from_the_queue(fleet):
    fleet.configure(limits={"queues": {"*": LIMIT}, "tenants": {"greedy": SLOW}}, bucketflow_tenant="tenant")
    fleet.start(2)
    fleet.send("work", "greedy", times=60)
    fleet.records.wait("refusals", 59)
    fleet.send("work", "modest", times=40)

    modest = fleet.records.starts(40, args=["modest"])

    assert utilisation(modest, CAPACITY, RATE - 1) >= 0.9


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_refused_tasks_of_a_tenant_occupy_no_slot(fleet, on_limit):
    fleet.configure(limits={"tenants": {"slow": SLOW}}, bucketflow_tenant="tenant", bucketflow_on_limit=on_limit)
    fleet.worker(concurrency=2)
    fleet.send("work", "slow", times=20)
    fleet.records.wait("starts", 1)
    fleet.send("work", "fast", times=20)

    fleet.records.starts(20, args=["fast"])

    assert len(fleet.records.starts(1, args=["slow"])) <= 3


def test_tasks_of_an_exhausted_queue_occupy_no_slot_and_stay_with_the_broker(fleet):
    fleet.configure(limits={"queues": {"exhausted": SLOW}})
    fleet.worker(concurrency=2, queues="exhausted,free")
    fleet.send("work", "exhausted", times=100, queue="exhausted")
    fleet.records.wait("starts", 1)
    fleet.send("work", "free", times=50, queue="free")

    fleet.records.starts(50, args=["free"])

    with fleet.server.client() as broker:
        assert broker.llen("exhausted") >= 60  # the backlog stays there, not in the worker
    assert len(fleet.records.starts(1, args=["exhausted"])) <= 3
    assert fleet.stats()["round_trips"] <= 30


@contextmanager
def events(app, kind):
    """Receive Celery's events; yield a function that returns the events of *kind* so far."""
    seen = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={kind: seen.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):

            def drain():
                with suppress(TimeoutError):
                    while True:
                        listening.drain_events(timeout=0.2)
                return seen

            drain()  # on Redis the subscription begins with the first read
            yield drain


@pytest.mark.timing
@pytest.mark.parametrize(
    ("limits", "level", "key"),
    [
        ({"all": SLOW, "tasks": {"*": LIMIT}}, "all", "all"),
        ({"all": LIMIT, "queues": {"*": SLOW}}, "queue", "q:celery"),
        ({"queues": {"*": LIMIT}, "tenants": {"*": SLOW}}, "tenant", "q:celery/t:acme"),
        ({"tenants": {"*": LIMIT}, "tasks": {"*": SLOW}}, "task", "q:celery/t:acme/f:workloads.work"),
    ],
    ids=["all", "queue", "tenant", "task"],
)
def test_a_refusal_reports_the_binding_level_and_the_wait(fleet, limits, level, key):
    fleet.configure(limits=limits, bucketflow_tenant="tenant")
    fleet.worker("threads", "-E")
    with events(fleet.app, "throttle-refused") as drain:
        fleet.send("work", "acme", times=2)
        _, start = fleet.records.wait("starts", 2)
        [event] = drain()

    [refusal] = fleet.records.of("refusals")
    assert (refusal["id"], refusal["level"]) == (start["id"], level)
    assert 0.5 <= refusal["wait"] <= 1
    assert -0.05 <= start["at"] - (refusal["at"] + refusal["wait"]) <= 0.5
    assert (event["uuid"], event["name"]) == (start["id"], "workloads.work")
    assert (event["level"], event["key"]) == (level, key)
    assert event["wait"] == pytest.approx(refusal["wait"])


# Retry: what stands in a deep queue, in a busy worker, or has been revoked


@pytest.mark.timing
def test_a_deep_backlog_that_stands_before_the_workers_runs_at_its_limit_and_in_order(fleet):
    fleet.configure(limits={"tenants": {"*": {"rate": "20/s", "capacity": 10}}}, bucketflow_tenant="tenant")
    order = {result.id: number for number, result in enumerate(fleet.send("work", "acme", times=3000))}
    fleet.start(2, "prefork")
    first = fleet.records.wait("starts", 1)[0]["at"]

    time.sleep(first + 10 - time.time())  # reading the queue takes about half of that

    starts = fleet.records.of("starts")
    assert excess(starts, 10, 20) <= JITTER
    assert utilisation(starts, 10, 20) >= 0.98
    places = [order[start["id"]] for start in sorted(starts, key=lambda start: start["at"])]
    assert max(abs(place - number) for number, place in enumerate(places)) <= 0.05 * len(order)
    assert max(fleet.records.deliveries().values()) <= 2


@pytest.mark.parametrize("visibility_timeout", [3600, 20])
def test_a_due_task_of_a_busy_worker_starts_in_another_one_and_no_task_runs_twice(fleet, visibility_timeout):
    fleet.configure(
        limits={"tenants": {"acme": {"rate": "2/s", "capacity": 2}}},
        bucketflow_tenant="tenant",
        broker_transport_options={"visibility_timeout": visibility_timeout, "unacked_restore_interval": 1},
    )
    fleet.worker(concurrency=1)
    sent = {result.id for result in fleet.send("work", "acme", times=24)}
    fleet.records.wait("starts", 2)
    fleet.send("work", "long", 30)
    fleet.records.starts(1, args=["long", 30])
    fleet.worker(concurrency=1)

    starts = fleet.records.starts(24, timeout=25, args=["acme"])

    assert {start["id"] for start in starts} == sent
    assert len(starts) == 24
    assert excess(starts, 2, 2) <= JITTER


@pytest.mark.parametrize("wait", [1.0, 0.0], ids=["deferred", "just received"])
def test_revoked_tasks_give_their_reservations_back(fleet, wait):
    fleet.configure(limits={"tenants": {"*": {"rate": "1/s", "capacity": 1}}}, bucketflow_tenant="tenant")
    fleet.worker()
    waiting = fleet.send("work", "acme", times=21)
    fleet.records.wait("starts", 1)
    time.sleep(wait)

    fleet.app.control.revoke([result.id for result in waiting])
    time.sleep(1.2)  # a worker looks for new revocations once a second
    (fresh,) = fleet.send("work", "acme")
    sent_at = time.time()

    wait_until(lambda: fresh.id in {start["id"] for start in fleet.records.of("starts")}, timeout=15)
    (start,) = [start for start in fleet.records.of("starts") if start["id"] == fresh.id]
    assert start["at"] - sent_at <= 3
