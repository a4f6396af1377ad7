"""Republication: the copy of a message is the same task in a new delivery."""

from __future__ import annotations

import zlib
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from celery import Celery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.message import Message

from bucketflow_celery.messages import codec
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.scheduling.ticket import HEADER, Ticket

BODY = b'[[1], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
HEADERS = {
    "lang": "py",
    "task": "shop.sync",
    "id": "7f3c",
    "root_id": "7f3c",
    "parent_id": None,
    "group": "g",
    "retries": 2,
    "timelimit": [None, 3],
    "eta": None,
    "expires": None,
    "tenant": "acme",
    "mine": "kept",
}
PROPERTIES = {
    "correlation_id": "7f3c",
    "reply_to": "me",
    "priority": 7,
    "delivery_mode": 2,
    "delivery_tag": "9",
    "delivery_info": {"exchange": "mail", "routing_key": "send"},
    "body_encoding": "base64",
    "expiration": "5000",
}
TICKET = Ticket({"q:q/t:a": 5_000_000}, 1.7e9).write()


@pytest.fixture
def channel():
    """Yield a channel of an in-memory broker with an empty queue ``q``."""
    app = Celery("shop", set_as_current=False, broker="memory://")
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        channel.queue_declare("q")
        channel.queue_purge("q")
        channel.app = app
        yield channel


def republished(channel, *, countdown=30.0, body=BODY, headers=None, properties=None, **options):
    message = Message(
        body,
        headers={**HEADERS, **(headers or {})},
        properties={**PROPERTIES, **(properties or {})},
        content_type="application/json",
        content_encoding="utf-8",
        **options,
    )
    republisher = Republisher(channel.app, delayed=False)
    try:
        republisher.publish(message, "q", countdown, TICKET)
    finally:
        republisher.close()
    return channel.basic_get("q", no_ack=True)


def test_the_copy_is_the_same_task(channel):
    got = republished(channel)
    assert got.body == BODY
    assert (got.content_type, got.content_encoding) == ("application/json", "utf-8")
    same = {name: value for name, value in HEADERS.items() if name != "eta"}
    assert {name: got.headers.get(name) for name in same} == same
    for name in ("correlation_id", "reply_to", "priority", "delivery_mode"):
        assert got.properties[name] == PROPERTIES[name]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
#: Besides any text: arguments of Kombu's producer and channel, properties of AMQP, and nearly the headers of a broker.
NAMES = st.text() | st.sampled_from(
    [
        "body",
        "exchange",
        "timeout",
        "retry",
        "declare",
        "serializer",
        "self",
        "headers",
        "channel",
        "mandatory",
        "content_type",
        "message_id",
        "timestamp",
        "type",
        "x-death-star",
        "x-delivery-counter",
        "x-first-death-",
        "my_tag",
    ]
)
OF_ONE_DELIVERY = {"delivery_tag", "delivery_info", "body_encoding", "expiration"}
PUBLISHED_PROPERTIES = st.dictionaries(NAMES.filter(lambda name: name not in OF_ONE_DELIVERY), JSON, max_size=4)
PUBLISHED_HEADERS = st.dictionaries(
    NAMES.filter(lambda name: name not in codec.BROKER_HEADERS | {"compression", "expires"}), JSON, max_size=4
)


@given(PUBLISHED_HEADERS, PUBLISHED_PROPERTIES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_copy_has_every_header_and_property_that_the_publisher_set(channel, headers, properties):
    got = republished(channel, headers=headers, properties=properties)
    kept = {name: value for name, value in {**PROPERTIES, **properties}.items() if name not in OF_ONE_DELIVERY}
    assert {name: value for name, value in got.properties.items() if name not in OF_ONE_DELIVERY} == kept
    own = {"eta": got.headers["eta"], HEADER: TICKET}
    assert got.headers == {**HEADERS, **headers, **own}


#: Values of every type that Kombu's JSON carries.
VALUES = [
    1,
    1.5,
    "é",
    None,
    [1, [2]],
    {"a": {"b": 1}},
    b"\xff",
    datetime(2026, 1, 2, tzinfo=timezone.utc),
    Decimal("1.10"),
    UUID(int=7),
]


def test_a_redis_broker_returns_and_parks_every_header_and_property(redis_server):
    app = Celery("shop", set_as_current=False, broker=redis_server.url)
    values = {f"my_{number}": value for number, value in enumerate(VALUES)}
    with app.connection_for_write() as connection, connection.Producer(auto_declare=False) as producer:
        producer.publish(BODY, "kept", headers={**HEADERS, **values}, content_type="application/json", **values)
        channel = connection.default_channel
        sent = channel.basic_get("kept", no_ack=True)
        republisher = Republisher(app, delayed=False)
        got = sent
        for _ in range(2):
            republisher.publish(got, "kept", 1.0, TICKET)
            got = channel.basic_get("kept", no_ack=True)
        republisher.close()
    parked, _ = codec.unpack(codec.pack(sent), accept=None, redelivered=False)

    for again in (got, parked):
        assert (again.body, again.content_type) == (BODY, "application/json")
        for name, value in values.items():
            assert (again.properties[name], again.headers[name]) == (value, value)


def test_the_copy_is_routed_to_its_queue_only_as_a_new_delivery(channel):
    got = republished(channel)
    assert got.delivery_info == {"exchange": "", "routing_key": "q"}
    assert got.properties["delivery_tag"] != PROPERTIES["delivery_tag"]
    assert "expiration" not in got.properties


def test_the_copy_has_the_ticket_and_the_eta(channel):
    before = datetime.now(timezone.utc)
    got = republished(channel, countdown=30.0)
    eta = datetime.fromisoformat(got.headers["eta"])
    assert before + timedelta(seconds=30) <= eta <= datetime.now(timezone.utc) + timedelta(seconds=30)
    assert Ticket.read(got.headers[HEADER]).reservations == {"q:q/t:a": 5_000_000}


def test_a_ticket_replaces_the_previous_one(channel):
    got = republished(channel, headers={HEADER: {"dues": {"old": 1}, "since": 1.0}})
    assert got.headers[HEADER] == TICKET


def test_headers_of_the_broker_are_not_copied(channel):
    brokers = {"x-death": [{"count": 1}], "x-first-death-queue": "q", "x-last-death-reason": "r", "x-delivery-count": 3}
    got = republished(channel, headers={**brokers, "x-mine": 1})
    assert not set(brokers) & set(got.headers)
    assert got.headers["x-mine"] == 1


@pytest.mark.parametrize("zone", ["+00:00", "Z", ""])
def test_the_expiration_of_the_copy_is_the_remaining_time(channel, zone):
    at = datetime.now(timezone.utc) + timedelta(seconds=100)
    got = republished(channel, headers={"expires": at.replace(tzinfo=None).isoformat() + zone})
    assert 90_000 < int(got.properties["expiration"]) <= 100_000
    assert got.headers["expires"].startswith(at.replace(tzinfo=None).isoformat())


def test_the_copy_of_a_compressed_message_is_compressed(channel):
    got = republished(channel, body=zlib.compress(BODY), headers={"compression": "application/x-gzip"})
    assert got.headers["compression"] == "application/x-gzip"
    assert got.body == BODY  # as decompressed by Kombu


def test_publish_after_close_opens_a_new_connection(channel):
    republisher = Republisher(channel.app, delayed=False)
    message = Message(BODY, headers=HEADERS, properties={}, content_type="application/json", content_encoding="utf-8")
    republisher.publish(message, "q", 1.0, TICKET)
    republisher.close()
    republisher.close()
    republisher.publish(message, "q", 1.0, TICKET)
    republisher.close()
    assert channel.queue_purge("q") == 2
