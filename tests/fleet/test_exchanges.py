"""Exchanges that feed several queues: each copy stays with its queue. And restarts of RabbitMQ."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from threading import Thread
from uuid import uuid4

import pytest
from celery import Celery
from fleet import Fleet
from kombu import Exchange
from kombu.message import Message
from processes import HOST, free_port, wait_until
from records import JITTER, excess
from servers import RabbitServer

from bucketflow_celery.messages import codec
from bucketflow_celery.messages.republisher import Republisher

DEFERRING = {"tenants": {"*": {"rate": "5/s", "capacity": 1}}}


@pytest.fixture(params=["redis", "classic", "quorum"])
def broker(request, fleet):
    """Point the fleet at each kind of broker in turn, and return the arguments of its queues."""
    if request.param != "redis":
        fleet.configure(broker_url=request.getfixturevalue("rabbit_server").url)
    if request.param == "quorum":
        fleet.configure(broker_transport_options={"confirm_publish": True})
    return {"x-queue-type": "quorum"} if request.param == "quorum" else None


def topology(fleet, arguments):
    """Write a module whose app consumes two queues of a topic exchange; return the names of exchange and queues."""
    exchange, first, second = (f"{name}.{uuid4().hex[:8]}" for name in ("events", "first", "second"))
    fleet.module(
        "routed",
        f"""
        from kombu import Exchange, Queue
        from workloads import app

        events = Exchange({exchange!r}, type="topic")
        app.conf.task_queues = [
            Queue({first!r}, events, routing_key="order.#", queue_arguments={arguments!r}),
            Queue({second!r}, events, routing_key="#.paid", queue_arguments={arguments!r}),
        ]
        """,
    )
    return exchange, first, second


def test_a_deferred_task_is_redelivered_from_its_own_queue_only(fleet, broker):
    fleet.configure(limits=DEFERRING)
    exchange, first, second = topology(fleet, broker)
    fleet.worker(app="routed", queues=first)
    fleet.worker(app="routed", queues=second)
    sent = sorted(
        fleet.app.send_task(
            "workloads.work",
            (number,),
            exchange=exchange,
            declare=[Exchange(exchange, type="topic")],
            routing_key="order.paid",
            headers={"tenant": "acme"},
        ).id
        for number in range(6)
    )

    fleet.records.wait("starts", 12)

    for node in ("w0", "w1"):
        starts = fleet.records.starts(6, node=node)
        assert sorted(start["id"] for start in starts) == sent
        assert excess(starts, 1, 5) <= JITTER
    # Each queue has a bucket of its own, so each delivers its copy at most twice.
    assert set(fleet.records.deliveries().values()) <= {2, 3, 4}
    assert fleet.records.count("refusals") >= 8
    assert fleet.records.count("starts") == 12


def test_a_parked_message_for_two_queues_of_one_worker_is_two_tasks(fleet, broker):
    fleet.configure(limits={"queues": {"*": {"rate": "20/s", "capacity": 1}}}, bucketflow_on_limit="park")
    exchange, first, second = topology(fleet, broker)
    fleet.worker("prefork", app="routed", queues=f"{first},{second}")
    sent = [
        fleet.app.send_task(
            "workloads.late",
            (number,),
            exchange=exchange,
            declare=[Exchange(exchange, type="topic")],
            routing_key="order.paid",
        ).id
        for number in range(8)
    ]

    starts = fleet.records.wait("starts", 16)

    assert sorted(start["id"] for start in starts) == sorted([*sent, *sent])
    wait_until(lambda: not fleet.parked())


def test_tasks_of_a_queue_with_several_bindings_are_parked_in_that_queue(fleet):
    fleet.configure(limits={"queues": {"*": {"rate": "20/s", "capacity": 1}}}, bucketflow_on_limit="park")
    fleet.module(
        "bound",
        """
        from kombu import Exchange, Queue, binding
        from workloads import app

        media = Exchange("media")
        bindings = [binding(media, routing_key=key) for key in ("video", "image")]
        app.conf.task_queues = [Queue("media", bindings=bindings)]
        """,
    )
    fleet.worker(app="bound", queues="media")
    sent = [
        fleet.app.send_task("workloads.work", (key,), exchange="media", routing_key=key).id
        for key in ("video", "image") * 5
    ]

    starts = fleet.records.wait("starts", 10)

    assert sorted(start["id"] for start in starts) == sorted(sent)
    assert fleet.stats()["parked"] >= 5


@pytest.fixture
def rabbit(tmp_path):
    """Yield a RabbitMQ that is not shared, to restart."""
    with RabbitServer.start(tmp_path / "rabbit") as rabbit:
        yield rabbit


def ran(fleet, queue_type):
    return [start for start in fleet.records.of("starts") if start["args"] == [queue_type]]


def test_held_and_deferred_tasks_survive_a_restart_of_rabbitmq(fleet, rabbit, redis_server, tmp_path):
    other = Fleet(tmp_path / "other", redis_server)
    sent = {}
    for queue_type, part in (("classic", fleet), ("quorum", other)):
        part.configure(
            broker_url=rabbit.url,
            broker_transport_options={"confirm_publish": True},
            task_default_queue=queue_type,
            task_default_queue_type=queue_type,
            limits={
                "queues": {"*": {"rate": "8/s", "capacity": 1}},
                "tenants": {"acme": {"rate": "2/s", "capacity": 1}},
            },
        )
        part.worker(queues=queue_type)
        deferred = part.send("work", queue_type, times=5, headers={"tenant": "acme"})
        held = part.send("work", queue_type, times=12)
        sent[queue_type] = {result.id for result in deferred + held}
    wait_until(lambda: sum(refusal["level"] == "tenant" for refusal in fleet.records.of("refusals")) >= 8)

    # Not by SIGKILL, after which RabbitMQ loses acknowledgements and bindings of the last second or so.
    rabbit.process.stop()
    rabbit.process.launch()
    rabbit.wait_ready()

    for queue_type, ids in sent.items():
        wait_until(lambda q=queue_type, i=ids: i == {start["id"] for start in ran(fleet, q)}, timeout=30)
        assert excess(ran(fleet, queue_type), 1, 8) <= JITTER
        # Only tasks that had started without acknowledgement when the connection broke run again.
        assert len(ran(fleet, queue_type)) <= len(ids) + 2
    other.close()


class TestRepublisher:
    """Publishing blocks the worker's event loop, so it must not take long."""

    MESSAGE = Message(b"[[], {}, {}]", headers={"task": "work"}, content_type="application/json")

    def failures(self, republisher):
        """Return the errors that publishing raised within 4 seconds."""
        errors = []

        def publish():
            try:
                republisher.publish(self.MESSAGE, "copies", 1.0, {})
            except OSError as error:
                errors.append(error)

        thread = Thread(target=publish, daemon=True)
        thread.start()
        thread.join(4)
        return errors

    def test_publishing_to_a_stopped_broker_fails_at_once(self):
        republisher = Republisher(Celery(broker=f"amqp://{HOST}:{free_port()}"), delayed=False)

        [error] = self.failures(republisher)

        assert isinstance(error, ConnectionRefusedError)

    def test_publishing_to_a_hanging_broker_times_out(self, rabbit_server, monkeypatch):
        monkeypatch.setattr("bucketflow_celery.messages.republisher._PUBLISH_TIMEOUT", 0.5)
        republisher = Republisher(Celery(broker=rabbit_server.url), delayed=False)
        assert self.failures(republisher) == []

        rabbit_server.process.pause()
        errors = self.failures(republisher)
        rabbit_server.process.resume()

        assert len(errors) == 1
        republisher.close()

    #: Each property of AMQP but those of one delivery, and a header of each of its types.
    PROPERTIES = {  # noqa: RUF012
        "delivery_mode": 1,
        "priority": 7,
        "correlation_id": "c",
        "reply_to": "r",
        "message_id": "m",
        "timestamp": 1_700_000_000,
        "type": "t",
        "user_id": "guest",
        "app_id": "a",
        "cluster_id": "k",
    }
    HEADERS = {  # noqa: RUF012
        "task": "work",
        "int": 2**40,
        "float": 1.5,
        "none": None,
        "text": "é",
        "bytes": b"\xff",
        "bool": True,
        "decimal": Decimal("1.10"),
        "at": datetime(2026, 1, 2),  # noqa: DTZ001 - as py-amqp reads them
        "table": {"a": {"b": [1, "x"]}},
        "x-death-star": 1,
    }

    def received(self, channel):
        messages = []
        wait_until(lambda: messages.append(channel.basic_get("kept", no_ack=True)) or messages[-1])
        return channel.message_to_python(messages[-1])

    def test_rabbitmq_returns_and_parks_every_header_and_property(self, rabbit_server):
        app = Celery(broker=rabbit_server.url)
        republisher = Republisher(app, delayed=False)
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            for queue in ("kept", "other"):
                channel.queue_declare(queue, durable=False)
            headers = {**self.HEADERS, "CC": ["other"]}
            properties = {name: value for name, value in self.PROPERTIES.items() if name != "priority"}
            message = channel.prepare_message(b"[]", 7, "application/json", "utf-8", headers, properties)
            channel.basic_publish(message, "", "kept")
            sent = self.received(channel)
            parked, _ = codec.unpack(codec.pack(sent), accept=None, redelivered=False)
            republisher.publish(sent, "kept", 1.0, {})
            got = self.received(channel)
            copies_elsewhere = channel.queue_purge("other")
        republisher.close()

        for again in (got, parked):
            assert {name: again.properties.get(name) for name in self.PROPERTIES} == self.PROPERTIES
            assert {name: again.headers.get(name) for name in self.HEADERS} == self.HEADERS
            assert (again.body, again.content_type, again.content_encoding) == ("[]", "application/json", "utf-8")
        assert copies_elsewhere == 1, "the copy was routed to another queue, where it is a new task"

    def test_a_message_of_another_user_can_be_returned(self, rabbit_server):
        republisher = Republisher(Celery(broker=rabbit_server.url), delayed=False)
        message = Message(
            b"[]", headers={"task": "work"}, properties={"user_id": "another"}, content_type="application/json"
        )

        republisher.publish(message, "copies", 1.0, {})

        republisher.close()  # the broker has confirmed the copy
