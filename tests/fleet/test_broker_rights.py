"""Workers whose user of RabbitMQ has only some rights."""

from __future__ import annotations

from uuid import uuid4

from records import JITTER, excess

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


def logins(rabbit_server):
    """Return how often the user ``limited`` has opened a connection."""
    return rabbit_server.process.log.read_text().count("user 'limited' authenticated")
