"""What a RabbitMQ does not allow its clients: to publish, and to leave messages unacknowledged."""

from __future__ import annotations

import time
from uuid import uuid4

from records import JITTER, excess
from servers import RabbitServer

LIMIT = {"rate": "10/s", "capacity": 2}


def test_a_user_that_may_not_publish_copies_holds_them_after_one_warning_with_rabbitmq(fleet, rabbit_server):
    fleet.configure(
        broker_url=rabbit_server.url_of("limited"),
        task_default_queue=f"celery.{uuid4().hex[:8]}",
        limits={"tenants": {"*": LIMIT}},
        bucketflow_tenant="tenant",
    )
    worker = fleet.worker()
    fleet.configure(broker_url=rabbit_server.url)  # of the publisher
    before = logins(rabbit_server)
    fleet.send("work", "acme", times=30)

    starts = fleet.records.wait("starts", 30)

    assert excess(starts, 2, 10) <= JITTER
    assert worker.log.count("broker refuses deferred tasks, they are held instead") == 1
    assert "403" in worker.log
    assert "did not accept" not in worker.log
    assert logins(rabbit_server) - before <= 2  # for the copy that is refused, and for the length of the queue


def test_no_message_waits_in_a_worker_for_longer_than_the_consumer_timeout_of_rabbitmq(fleet, tmp_path):
    timeout = 4
    settings = ["{channel_tick_interval, 500}", f"{{consumer_timeout, {1000 * timeout}}}"]
    with RabbitServer.start(tmp_path / "rabbit", settings) as rabbit:
        fleet.configure(
            broker_url=rabbit.url,
            limits={"queues": {"*": "1/s"}, "tenants": {"slow": {"rate": "1/m", "capacity": 1}}},
            bucketflow_consumer_timeout=timeout,
            bucketflow_tenant="tenant",
        )
        worker = fleet.worker()
        fleet.send("work", "slow", times=2)  # the second is deferred, by half of the timeout at a time
        fleet.send("work", times=6)  # the last are held for longer than the timeout
        fleet.records.wait("starts", 7)
        time.sleep(1)

        assert "PRECONDITION_FAILED" not in worker.log
        assert "has timed out" not in rabbit.process.log.read_text()
        assert max(fleet.records.deliveries().values()) > 2
        assert len({start["id"] for start in fleet.records.of("starts")}) == 7


def logins(rabbit_server):
    """Return how often the user ``limited`` has opened a connection."""
    return rabbit_server.process.log.read_text().count("user 'limited' authenticated")
