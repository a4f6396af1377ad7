"""Promise 8: while the store is unavailable ``on_store_error`` applies, and the workers recover without a restart."""

from __future__ import annotations

import time

import pytest
from processes import wait_until
from proxy import Proxy
from records import JITTER, excess
from servers import RedisServer, hang, kill

RATE, CAPACITY = 10, 2
LIMITS = {
    "queues": {"*": {"rate": f"{RATE}/s", "capacity": CAPACITY}},
    "tenants": {"acme": {"rate": "5/s", "capacity": 1}},
}


@pytest.fixture
def store(fresh_redis, fleet):
    """Yield the Redis of the limits. The broker is on the shared Redis, which stays up."""
    fleet.configure(limits=LIMITS, bucketflow_url=fresh_redis.url, bucketflow_timeout=0.3)
    return fresh_redis


def send(fleet, times):
    """Publish *times* tasks, every fifth of them for a tenant with a limit."""
    return {
        fleet.send("work", number, headers={"tenant": "umbrella" if number % 5 else "acme"})[0].id
        for number in range(times)
    }


def finish(fleet, sent, timeout=25):
    """Return the starts once each of *sent* has run, and assert that none has run twice."""
    starts = fleet.records.wait("starts", len(sent), timeout)
    time.sleep(0.2)
    assert sorted(start["id"] for start in fleet.records.of("starts")) == sorted(sent)
    return starts


@pytest.mark.parametrize(("policy", "outage"), [("hold", kill), ("hold", hang), ("refuse", kill)])
def test_hold_and_refuse_start_no_task_during_an_outage(fleet, store, policy, outage):
    fleet.configure(bucketflow_on_store_error=policy)
    worker = fleet.worker()
    sent = send(fleet, 30)
    fleet.records.wait("starts", 5)
    end_of_outage = outage(store)
    worker.wait_log(f"on_store_error='{policy}'")
    before = fleet.records.count("starts")
    sent |= send(fleet, 10)
    time.sleep(1.2)

    assert fleet.records.count("starts") == before

    recovered = time.time()
    end_of_outage()
    starts = finish(fleet, sent)
    assert excess([start for start in starts if start["at"] > recovered], CAPACITY, RATE) <= JITTER
    assert worker.log.count("on_store_error=") == 1
    assert worker.log.count("answers again") == 1


@pytest.mark.parametrize("outage", [kill, hang])
def test_admit_starts_every_task_during_an_outage(fleet, store, outage):
    fleet.configure(bucketflow_on_store_error="admit")
    worker = fleet.worker()
    sent = send(fleet, 30)
    fleet.records.wait("starts", 5)
    end_of_outage = outage(store)
    sent |= send(fleet, 100)

    finish(fleet, sent, timeout=4)

    end_of_outage()
    assert "on_store_error='admit'" in worker.log
    wait_until(lambda: fleet.send("work", "probe") and "answers again" in worker.log, pause=0.1)
    again = {result.id for result in fleet.send("work", "again", times=20)}
    starts = fleet.records.starts(20, args=["again"])
    assert {start["id"] for start in starts} == again
    assert excess(starts, CAPACITY, RATE) <= JITTER


def test_local_starts_tasks_by_the_workers_shares_during_an_outage(fleet, store):
    fleet.configure(bucketflow_on_store_error="local", limits={"all": {"rate": "10/s", "capacity": 4}})
    workers = fleet.start(2)
    sent = {result.id for result in fleet.send("work", times=110)}
    time.sleep(5.5)  # each worker has announced itself twice
    end_of_outage = kill(store)
    for worker in workers:
        worker.wait_log("by its own buckets until the store answers: share=0.5")
    began = time.time()
    time.sleep(2.5)
    recovered = time.time()
    end_of_outage()

    starts = finish(fleet, sent)

    assert excess([start for start in starts if start["at"] < recovered], 4, 10) <= JITTER
    assert sum(began < start["at"] < recovered for start in starts) >= 10
    assert {start["node"] for start in starts if began < start["at"] < recovered} == {"w0", "w1"}
    assert excess([start for start in starts if start["at"] > recovered + 1], 4, 10) <= JITTER


@pytest.mark.parametrize("policy", ["hold", "admit", "refuse"])
def test_a_worker_starts_during_an_outage(fleet, store, policy):
    fleet.configure(bucketflow_on_store_error=policy)
    store.kill()
    worker = fleet.worker()
    sent = send(fleet, 8)
    worker.wait_log(f"on_store_error='{policy}'")
    if policy == "admit":
        finish(fleet, sent, timeout=3)
    else:
        time.sleep(0.3)
        assert fleet.records.count("starts") == 0

    store.restart()

    finish(fleet, sent)


def test_flushed_scripts_are_loaded_again(fleet, store):
    fleet.start(2)
    sent = send(fleet, 30)
    fleet.records.wait("starts", 10)
    with store.client() as client:
        client.script_flush()

    starts = finish(fleet, sent)

    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert fleet.stats()["store_errors"] == 0


def test_a_worker_stays_responsive_during_an_outage(fleet, store):
    fleet.configure(limits={"queues": {"limited": {"rate": "20/s", "capacity": 1}}})
    worker = fleet.worker(queues="limited,free")
    end_of_outage = hang(store)
    limited = fleet.send("work", times=20, queue="limited")
    worker.wait_log("on_store_error")
    began = time.monotonic()
    free = fleet.send("work", "free", times=20, queue="free")

    fleet.records.starts(20, args=["free"], timeout=3)
    assert fleet.inspect().ping()
    assert time.monotonic() - began < 3

    end_of_outage()
    finish(fleet, {result.id for result in limited + free})


@pytest.mark.parametrize("policy", ["admit", "hold"])
def test_a_connection_that_was_dropped_while_idle_is_no_outage(fleet, store, policy):
    with Proxy(store.port) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}/0?health_check_interval=1"
        fleet.configure(bucketflow_url=url, bucketflow_on_store_error=policy)
        worker = fleet.worker("prefork")
        fleet.send("work", times=CAPACITY)
        fleet.records.wait("starts", CAPACITY)
        proxy.drop()
        time.sleep(1.2)

        starts = finish(fleet, send(fleet, 30) | {start["id"] for start in fleet.records.of("starts")})

    assert excess(starts, CAPACITY, RATE) <= JITTER
    assert "ERROR" not in worker.log
    assert "unavailable" not in worker.log


def test_after_a_failover_behind_one_address_tasks_start_within_seconds(fleet, store, tmp_path):
    master = store.client()
    with RedisServer.start(tmp_path / "replica") as server, server.client() as replica, Proxy(store.port) as proxy:
        replica.replicaof("127.0.0.1", store.port)
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
        fleet.configure(bucketflow_url=f"redis://127.0.0.1:{proxy.port}/0")
        fleet.worker()
        sent = send(fleet, 40)
        fleet.records.wait("starts", 10)
        replica.replicaof("NO", "ONE")
        master.replicaof("127.0.0.1", server.port)
        proxy.target = server.port

        finish(fleet, sent, timeout=15)

        assert replica.exists("{bucketflow}:q:celery")
    master.close()
