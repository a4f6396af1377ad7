"""Outages of the store and of the broker: parked, running and held tasks survive them."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from processes import HOST, free_port, wait_until
from records import JITTER, excess, utilisation
from servers import RabbitServer, RedisServer, hang, kill

RATE, CAPACITY = 10, 2
LIMIT = {"queues": {"*": {"rate": f"{RATE}/s", "capacity": CAPACITY}}}
KEPT = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def kept_redis(tmp_path):
    """Yield a Redis that is not shared and persists every write."""
    with RedisServer.start(tmp_path / "kept", args=KEPT) as server:
        yield server


@pytest.fixture
def parking(fleet, kept_redis):
    """Yield a fleet that parks in ``kept_redis``. The broker is on the shared Redis, which stays up."""
    fleet.configure(
        bucketflow_on_limit="park",
        bucketflow_url=kept_redis.url,
        bucketflow_timeout=0.3,
        bucketflow_lease=2,
        limits=LIMIT,
    )
    return fleet


def ran(fleet, results, twice=()):
    sent = {result.id for result in results}
    wait_until(lambda: {start["id"] for start in fleet.records.of("starts")} >= sent, timeout=20)
    time.sleep(0.3)
    starts = Counter(start["id"] for start in fleet.records.of("starts"))
    assert set(starts) == sent
    assert {one for one, times in starts.items() if times > 1} <= set(twice)
    wait_until(lambda: fleet.parked() == 0)


@pytest.mark.parametrize("outage", [kill, hang])
def test_parked_tasks_wait_until_the_store_is_available(parking, kept_redis, outage):
    workers = parking.start(2, "prefork")
    sent = parking.send("work", times=60)
    parking.records.wait("starts", 10)
    end_of_outage = outage(kept_redis)
    wait_until(lambda: all("parked tasks wait" in worker.log for worker in workers))
    before = parking.records.count("starts")
    sent += parking.send("work", times=10)
    time.sleep(1.5)
    assert parking.records.count("starts") == before
    back = time.time()

    end_of_outage()

    ran(parking, sent)
    assert excess([start for start in parking.records.of("starts") if start["at"] > back], CAPACITY, RATE) <= JITTER


def test_a_running_task_runs_once_though_the_store_is_down_for_longer_than_the_lease(parking, kept_redis):
    parking.throttle().pause(queue="celery")
    parking.start(2, "prefork")
    sent = parking.send("late", "long", 5, times=2) + parking.send("work", "short", 1, times=2)
    parking.wait_parked(4)
    parking.throttle().resume(queue="celery")
    parking.records.wait("starts", 4)

    kept_redis.kill()
    time.sleep(3)
    kept_redis.restart()

    assert [result.get(timeout=10) for result in sent] == ["long", "long", "short", "short"]
    time.sleep(1)
    ran(parking, sent)


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        (("maxmemory", 1), ("maxmemory", 0)),
        (("min-replicas-to-write", 1), ("min-replicas-to-write", 0)),
    ],
    ids=["out of memory", "not enough replicas"],
)
def test_tasks_that_cannot_be_stored_are_held_and_not_lost(parking, kept_redis, broken, repaired):
    parking.start(2, "prefork")
    sent = parking.send("work", times=30)
    parking.records.wait("starts", 5)
    with kept_redis.client() as store:
        store.config_set(*broken)
        sent += parking.send("work", "outage", times=30)
        time.sleep(2)
        store.config_set(*repaired)

    ran(parking, sent)


def test_no_task_is_lost_while_the_store_is_read_only(parking, kept_redis):
    parking.start(2, "prefork")
    sent = parking.send("work", times=30)
    parking.records.wait("starts", 5)
    with kept_redis.client() as store:
        store.execute_command("REPLICAOF", HOST, free_port())  # of a server that does not exist
        sent += parking.send("work", "outage", times=30)
        time.sleep(2)
        store.execute_command("REPLICAOF", "NO", "ONE")

    ran(parking, sent)


def test_a_store_without_free_memory_dispatches_parked_tasks(parking, kept_redis):
    parking.throttle().pause(queue="celery")
    parking.worker("prefork")
    sent = parking.send("work", times=20)
    parking.wait_parked(20)
    parking.throttle().resume(queue="celery")
    with kept_redis.client() as store:
        store.config_set("maxmemory", 1)

        ran(parking, sent)


@pytest.mark.timing
def test_a_store_without_free_memory_dispatches_at_the_limit_and_can_be_steered(parking, kept_redis):
    throttle = parking.throttle()
    throttle.pause(queue="celery")
    workers = parking.start(2, "prefork")
    sent = parking.send("work", times=40)
    parking.wait_parked(40)
    with kept_redis.client() as store:
        store.config_set("maxmemory", 1)

        throttle.set_limits(LIMIT)
        throttle.pause(tenant="acme")
        throttle.resume(queue="celery")
        waiting = parking.send("work", "waiting", times=20)
        starts = parking.records.starts(40, args=[])
        assert utilisation(starts, CAPACITY, RATE) >= 0.9
        throttle.pause(queue="celery")
        assert throttle.paused() == ["queue:celery", "tenant:acme"]
        throttle.set_limits(None)
        throttle.resume(queue="celery")
        for worker in workers:
            assert worker.log.count("no task is parked until the store has memory") <= 1
            assert worker.log.count("on_store_error=") == 0
        store.config_set("maxmemory", 0)

        ran(parking, sent + waiting)


def test_lost_connections_to_the_broker_strand_no_parked_task(fleet, fresh_redis):
    limits = {"queues": {"*": {"rate": "300/s", "capacity": 2}}}
    fleet.configure(bucketflow_on_limit="park", broker_url=fresh_redis.url, limits=limits)
    fleet.throttle().pause(queue="celery")
    fleet.worker("prefork", concurrency=4)
    sent = fleet.send("work", "short", 0.01, times=600)
    fleet.wait_parked(600)
    fleet.throttle().resume(queue="celery")

    with fresh_redis.client() as broker:
        for _ in range(10):
            time.sleep(0.3)
            broker.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    ran(fleet, sent)


@pytest.mark.parametrize("vendor", ["redis", "rabbitmq"])
def test_parked_and_running_tasks_survive_a_restart_of_the_broker(fleet, tmp_path, vendor):
    directory = tmp_path / "broker"
    server = RabbitServer.start(directory) if vendor == "rabbitmq" else RedisServer.start(directory, args=KEPT)
    with server as broker:
        fleet.configure(bucketflow_on_limit="park", broker_url=broker.url, bucketflow_lease=2, limits=LIMIT)
        fleet.throttle().pause(queue="celery")
        fleet.worker("prefork", concurrency=3)
        long = fleet.send("work", "long", 5) + fleet.send("late", "long", 5)
        fleet.wait_parked(2)
        fleet.throttle().resume(queue="celery")
        fleet.records.wait("starts", 2)
        fleet.throttle().pause(queue="celery")
        sent = fleet.send("work", times=20)
        fleet.wait_parked(20)

        broker.restart()
        fleet.throttle().resume(queue="celery")

        wait_until(lambda: fleet.records.count("starts") >= 22, timeout=20)
        assert [result.get(timeout=15) for result in long] == ["long", "long"]
        ran(fleet, sent + long)
        again = fleet.send("work", "again", times=10)
        ran(fleet, sent + long + again)


def test_a_late_task_that_celery_cancels_on_connection_loss_runs_again(fleet, tmp_path):
    with RedisServer.start(tmp_path / "broker", args=KEPT) as broker:
        fleet.configure(
            bucketflow_on_limit="park",
            broker_url=broker.url,
            limits=LIMIT,
            worker_cancel_long_running_tasks_on_connection_loss=True,
        )
        fleet.throttle().pause(queue="celery")
        fleet.worker("prefork")
        (long,) = fleet.send("late", "long", 3)
        fleet.wait_parked(1)
        fleet.throttle().resume(queue="celery")
        fleet.records.wait("starts", 1)

        broker.restart()

        assert len(fleet.records.starts(2, id=long.id)) == 2
        assert long.get(timeout=10) == "long"
