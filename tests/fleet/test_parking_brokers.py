"""Parking on every broker and pool, in memory without a server, and with ten thousand tenants."""

from __future__ import annotations

import json
import time
from uuid import uuid4

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from processes import wait_until
from records import JITTER, excess, utilisation

from bucketflow_celery import Throttle
from bucketflow_celery.testing import MemoryStore

RATE, CAPACITY = 40, 4
LIMITS = {
    "queues": {"*": {"rate": f"{RATE}/s", "capacity": CAPACITY}},
    "tenants": {"acme": {"rate": "5/s", "capacity": 1}},
}
QUORUM = {
    "task_default_queue_type": "quorum",
    "task_default_exchange_type": "topic",  # Celery's own countdowns need one on quorum queues
    "broker_transport_options": {"confirm_publish": True},
}


@pytest.fixture
def queue():
    """Return a unique queue name."""
    return f"celery.{uuid4().hex[:8]}"


@pytest.fixture
def parking(fleet):
    """Yield a fleet without workers that parks refused tasks."""
    fleet.configure(bucketflow_on_limit="park", limits=LIMITS)
    return fleet


def assert_parked_and_run(fleet, acme, others, queue="celery"):
    """Assert that the limits hold, and that each task was delivered and started once."""
    starts = fleet.records.wait("starts", len(acme) + len(others))
    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert excess([start for start in starts if start["tenant"] == "acme"], 1, 5) <= JITTER
    assert utilisation([start for start in starts if start["tenant"] != "acme"], CAPACITY, RATE - 5) >= 0.9
    assert sorted(start["id"] for start in starts) == sorted(result.id for result in acme + others)
    assert set(fleet.records.deliveries().values()) == {1}
    assert fleet.parked(queue) == 0


@pytest.mark.timing
@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_parking_on_rabbitmq(parking, rabbit_server, queue, queue_type):
    parking.configure(broker_url=rabbit_server.url, task_default_queue=queue)
    parking.configure(**(QUORUM if queue_type == "quorum" else {}))
    parking.start(2, "prefork")
    acme = parking.send("work", times=5, headers={"tenant": "acme"})
    others = parking.send("work", times=50, headers={"tenant": "umbrella"})

    assert_parked_and_run(parking, acme, others, queue)

    retried = parking.send("stubborn", headers={"tenant": "acme"}) + parking.send("shaky", headers={"tenant": "acme"})
    assert [result.get(timeout=15) for result in retried] == [2, 2]
    for result in retried:
        assert [start["retries"] for start in parking.records.starts(3, id=result.id)] == [0, 1, 2]


def test_higher_priority_numbers_start_first_with_rabbitmq(parking, rabbit_server, queue):
    parking.configure(broker_url=rabbit_server.url, task_default_queue=queue, task_queue_max_priority=10)
    parking.throttle().pause(queue=queue)
    parking.worker(concurrency=1)
    sent = {priority: parking.send("work", priority=priority, times=2) for priority in (3, 9, 0, 6)}
    parking.wait_parked(8, queue)

    parking.throttle().resume(queue=queue)

    starts = parking.records.wait("starts", 8)
    assert [start["id"] for start in starts] == [one.id for priority in (9, 6, 3, 0) for one in sent[priority]]


@pytest.mark.timing
@pytest.mark.parametrize("pool", ["gevent", "eventlet", "solo"])
def test_parking_on_other_pools(parking, pool):
    pytest.importorskip("celery" if pool == "solo" else pool)
    parking.worker(pool, concurrency=10)
    acme = parking.send("work", times=5, headers={"tenant": "acme"})
    others = parking.send("work", times=50, headers={"tenant": "umbrella"})

    assert_parked_and_run(parking, acme, others)


def shop(pool):
    """Return an app in this process, its throttle, its task, and the list of starts: (account, number, time)."""
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.05}
    limits = {"tenants": {"*": {"rate": "10/s", "capacity": 2}}}
    throttle = Throttle(app, store=MemoryStore(), on_limit="park", tenant="account", limits=limits)
    started = []

    @app.task(name=f"sell.{pool}")  # Celery keeps state by task name, which outlives a worker in this process
    def sell(account, number):
        started.append((account, number, time.monotonic()))
        return number

    return app, throttle, sell, started


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_parking_without_a_server(pool):
    app, throttle, sell, started = shop(pool)

    with start_worker(app, perform_ping_check=False, pool=pool, concurrency=1, shutdown_timeout=10):
        results = [sell.delay(account, number) for number in range(8) for account in ("acme", "umbrella")]
        wait_until(lambda: throttle.backlog()["celery"].count > 8)

        assert [result.get(timeout=9) for result in results] == [number for number in range(8) for _ in range(2)]
        assert throttle.backlog() == {}
    for account in ("acme", "umbrella"):
        assert [number for owner, number, _ in started if owner == account] == list(range(8))
    assert throttle.stats()["parked"] == throttle.stats()["dispatched"] >= 10


@pytest.mark.timing
def test_parked_tasks_start_in_time_without_an_event_loop():
    app, _, sell, started = shop("punctual")

    with start_worker(app, perform_ping_check=False, pool="threads", concurrency=1, shutdown_timeout=10):
        for number in range(12):
            sell.delay("acme", number)
        wait_until(lambda: len(started) == 12, timeout=15)

    first, *_, last = sorted(at for _, _, at in started)
    assert last - first < 2  # 1 s would be ideal


def test_ten_thousand_tenants_with_a_task_each(parking):
    tenants = 10_000
    parking.configure(limits={"tenants": {"*": {"rate": "1/s", "capacity": 1}}}, worker_prefetch_multiplier=100)
    parking.throttle().pause(queue="celery")
    [template] = parking.send("work", headers={"tenant": "tenant"})
    with parking.server.client() as broker, broker.pipeline(transaction=False) as publish:
        [message] = broker.lrange("celery", 0, -1)
        tag = json.loads(message)["properties"]["delivery_tag"]
        for number in range(1, tenants):
            copy = message.decode().replace(template.id, f"task {number}").replace(tag, str(uuid4()))
            publish.rpush("celery", copy.replace('"tenant": "tenant"', f'"tenant": "tenant {number}"'))
        publish.execute()
    parking.start(2, "threads", concurrency=8)
    with parking.server.client() as broker:
        wait_until(lambda: not broker.exists("celery", "unacked"), timeout=60)
    wait_until(lambda: len(parking.throttle().backlog()["celery"].tenants) == tenants)

    parking.throttle().resume(queue="celery")

    starts = parking.records.wait("starts", tenants, timeout=60)
    assert len({start["id"] for start in starts}) == len(starts) == tenants
    wait_until(lambda: parking.parked() == 0)
