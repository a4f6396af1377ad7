"""Codec of parked messages: a message survives encoding, and all its deliveries have one deduplication id."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message
from kombu.compression import compress
from kombu.utils.json import dumps

from bucketflow_celery.messages import codec
from bucketflow_celery.scheduling.admit import NO_DEADLINE

TAG = "0d6c3f0e-5c7f-4c0b-9e1c-8a6f1d2b3c4d"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Kombu's JSON decodes objects with these keys to other types.
PLAIN = st.dictionaries(st.text().filter(lambda name: not name.startswith(("__", "x-"))), JSON, max_size=4).filter(
    lambda headers: "__type__" not in str(headers) and "compression" not in headers
)
BODIES = st.binary() | st.text(st.characters(exclude_categories=["Cs"]))


def message(body=b"[]", headers=None, properties=None, delivery_info=None):
    return Message(
        body,
        content_type="application/json",
        content_encoding="utf-8",
        headers={"task": "f", "id": "1"} if headers is None else headers,
        properties={} if properties is None else properties,
        delivery_info={"redelivered": False, "routing_key": "q"} if delivery_info is None else delivery_info,
    )


def unpacked(packed, *, redelivered=False):
    return codec.unpack(packed, accept=None, redelivered=redelivered)


# Encoding


@given(BODIES, PLAIN, PLAIN, PLAIN, st.booleans(), st.none() | st.floats(0, 2e9))
def test_a_message_survives_encoding(  # noqa: PLR0913, PLR0917
    body, headers, properties, delivery_info, redelivered, since
):
    packed = codec.pack(message(body, headers, properties, delivery_info), since=since)
    assert isinstance(packed, bytes)
    again, facts = unpacked(packed, redelivered=redelivered)
    assert (again.body, type(again.body)) == (body, type(body))
    assert (again.headers, again.properties) == (headers, properties)
    assert again.delivery_info == {**delivery_info, "redelivered": redelivered}
    assert (again.content_type, again.content_encoding) == ("application/json", "utf-8")
    assert facts == {"since": since}


def test_headers_of_the_broker_are_not_stored():
    headers = {"task": "f", "x-death": [{"count": 1}], "x-delivery-count": 3, "x-mine": 1}
    assert unpacked(codec.pack(message(headers=headers)))[0].headers == {"task": "f", "x-mine": 1}


def test_a_compressed_body_is_decompressed_once():
    body, compression = compress(b"[[1], {}, {}]", "gzip")
    again, _ = unpacked(codec.pack(message(body, {"task": "f", "compression": compression})))
    assert (again.body, again.headers["compression"], again.errors) == (b"[[1], {}, {}]", compression, [])


def test_encoding_a_decoded_message_gives_the_same_bytes():
    first = codec.pack(message(b"\x00\xff"), since=1.5)
    again, facts = unpacked(first)
    assert codec.pack(again, **facts) == first


@pytest.mark.parametrize("part", ["headers", "properties"])
def test_a_value_that_is_not_json_raises_type_error(part):
    with pytest.raises(TypeError):
        codec.pack(message(**{part: {"odd": object()}}))


def test_a_value_that_would_be_decoded_to_another_raises_value_error():
    # RabbitMQ's headers may hold it. Decoded by Kombu it is an error, or a value of another type: the task stays held.
    for odd in ({"__type__": "mine", "__value__": 1}, {"__type__": "bytes", "__value__": "x"}):
        with pytest.raises(ValueError, match=r".*"):
            codec.pack(message(headers={"task": "f", "id": "1", "odd": [odd]}))


HEAD = {
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "headers": {},
    "properties": {},
    "delivery_info": {},
    "is_text": False,
    "facts": {},
    "compression": None,
}


def packed_manually(head, body=b""):
    raw = dumps(head).encode()
    return struct.pack("<I", len(raw)) + raw + body


MALFORMED = [
    b"",
    b"\x00",
    b"\x05\x00\x00\x00{}",
    b"\xff\xff\xff\xff{}",
    b"\x02\x00\x00\x00\xff\xfe",
    packed_manually([]),
    packed_manually({}),
    packed_manually({**HEAD, "headers": [1]}),
    packed_manually({**HEAD, "delivery_info": 3}),
    packed_manually({**HEAD, "is_text": True}, b"\xff"),
    *(packed_manually({key: value for key, value in HEAD.items() if key != name}) for name in HEAD),
]


@pytest.mark.parametrize("malformed", MALFORMED)
def test_malformed_bytes_raise_value_error(malformed):
    with pytest.raises(ValueError, match=r".*"):
        unpacked(malformed)


@given(st.binary())
def test_arbitrary_bytes_raise_nothing_but_value_error(malformed):
    with pytest.raises(ValueError, match=r".*"):
        unpacked(malformed)


# Deduplication ids


@given(BODIES, PLAIN)
def test_a_redelivered_message_has_the_same_uid(body, headers):
    brokers = {"x-death": [{"count": 2}], "x-first-death-queue": "q", "x-delivery-count": 7, "x-acquired-count": 1}
    first = message(body, headers)
    second = message(body, {**brokers, **dict(reversed(headers.items()))}, delivery_info={"redelivered": True})
    assert codec.uid_of(first, "q") == codec.uid_of(second, "q")
    assert len(codec.uid_of(first, "q")) == codec.UID_SIZE


def test_a_decoded_message_has_the_same_uid():
    first = message("[[1], {}, {}]", {"task": "f", "id": "1", "x-death": []})
    assert codec.uid_of(unpacked(codec.pack(first))[0], "q") == codec.uid_of(first, "q")


@given(st.tuples(st.binary(), PLAIN), st.tuples(st.binary(), PLAIN))
def test_different_messages_have_different_uids(one, other):
    same = (one[0], dumps(one[1], sort_keys=True)) == (other[0], dumps(other[1], sort_keys=True))
    assert (codec.uid_of(message(*one), "q") == codec.uid_of(message(*other), "q")) == same


def test_no_earlier_purge_of_its_new_queue_concerns_a_readdressed_message():
    packed = codec.readdressed(codec.pack(message(), since=7.5, seen=1_000_000), "new")
    assert unpacked(packed)[1] == {"since": 7.5, "seen": NO_DEADLINE}


def test_a_readdressed_message_differs_only_in_where_it_was_published():
    original = message(
        b"[1]", {"task": "f", "id": "1"}, {"priority": 3}, {"exchange": "x", "routing_key": "old", "redelivered": True}
    )
    decoded, facts = codec.unpack(
        codec.readdressed(codec.pack(original, since=7.5), "new"), accept=None, redelivered=False
    )
    assert decoded.delivery_info == {"exchange": "", "routing_key": "new", "redelivered": False}
    assert (decoded.body, decoded.headers, decoded.properties) == (original.body, original.headers, original.properties)
    assert facts == {"since": 7.5}


@given(st.binary(max_size=40))
def test_bytes_that_are_no_packed_message_are_not_readdressed(malformed):
    assert codec.readdressed(malformed, "new") == malformed


def test_the_uuid_of_a_published_message_determines_its_uid():
    def uid(tag, body=b"[]"):
        return codec.uid_of(message(body, properties={"delivery_tag": tag}), "q")

    assert uid(TAG) == uid(TAG, b"another body")
    assert uid(TAG) != uid(TAG.replace("0", "1"))
    assert uid(1) == uid(2), "RabbitMQ's tag numbers deliveries, it does not identify a message"


def test_salt_distinguishes_equal_messages():
    assert codec.uid_of(message(), "q", b"1") != codec.uid_of(message(), "q")
    assert codec.uid_of(message(), "q", b"1") != codec.uid_of(message(), "q", b"2")
    assert codec.uid_of(message(), "q") != codec.uid_of(message(), "other")


# Protocol and priority


@pytest.mark.parametrize(
    ("headers", "complete"),
    [({"task": "f", "id": "1"}, True), ({"task": "f"}, False), ({"id": "1"}, False), ({}, False)],
)
def test_only_messages_of_protocol_2_can_be_parked(headers, complete):
    assert codec.is_complete(SimpleNamespace(headers=headers)) == complete


RANKS = [
    # priority, rank if the highest is delivered first (RabbitMQ), rank if the lowest is (Redis)
    (None, 255, 0),
    (0, 255, 0),
    (1, 254, 1),
    (9, 246, 9),
    (255, 0, 255),
    (1000, 0, 255),
    (-3, 255, 0),
    ("high", 255, 0),
]


@pytest.mark.parametrize(("priority", "highest_first", "lowest_first"), RANKS)
def test_the_rank_follows_the_priority_order_of_the_broker(priority, highest_first, lowest_first):
    sent = message(properties={} if priority is None else {"priority": priority})
    assert codec.rank_of(sent, highest_first=True) == highest_first
    assert codec.rank_of(sent, highest_first=False) == lowest_first
