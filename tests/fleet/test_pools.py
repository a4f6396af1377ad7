"""Pools that the other tests do not use, and a worker in the test's process without a server."""

from __future__ import annotations

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from processes import wait_until
from records import JITTER, excess

from bucketflow_celery import Throttle
from bucketflow_celery.testing import MemoryStore


@pytest.mark.parametrize("pool", ["gevent", "eventlet", "solo"])
def test_limits_hold_on_other_pools(fleet, pool):
    pytest.importorskip("celery" if pool == "solo" else pool)
    fleet.configure(
        limits={"queues": {"*": {"rate": "10/s", "capacity": 4}}, "tenants": {"acme": {"rate": "5/s", "capacity": 1}}}
    )
    fleet.worker(pool, concurrency=10)
    held = fleet.send("work", times=20)
    deferred = fleet.send("work", times=4, headers={"tenant": "acme"})

    starts = fleet.records.wait("starts", 24)

    assert excess(starts, 4, 10) <= JITTER
    assert excess([start for start in starts if start["tenant"] == "acme"], 1, 5) <= JITTER
    assert sorted(start["id"] for start in starts) == sorted(result.id for result in held + deferred)
    deliveries = fleet.records.deliveries()
    assert {deliveries[result.id] for result in held} == {1}
    assert max(deliveries[result.id] for result in deferred) == 2


def test_limits_can_be_tested_without_a_server():
    app = Celery("shop", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.broker_transport_options = {"polling_interval": 0.05}
    throttle = Throttle(app, store=MemoryStore(), limits={"tasks": {"*": {"rate": "5/s", "capacity": 3}}})

    @app.task(name="sell")
    def sell(number):
        return number

    with start_worker(app, perform_ping_check=False, pool="threads", concurrency=2, shutdown_timeout=10):
        results = [sell.delay(number) for number in range(5)]
        wait_until(lambda: throttle.stats()["refused"] == 2)
        [level] = throttle.peek("celery", "sell")

        assert throttle.stats()["admitted"] == 3
        assert level.tokens < 1
        assert [result.get(timeout=5) for result in results] == list(range(5))
