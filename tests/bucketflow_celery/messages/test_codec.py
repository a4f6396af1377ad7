"""A message as it is parked: it comes out as it went in, under a name that every delivery of it has."""

from __future__ import annotations

import struct
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Message
from kombu.compression import compress
from kombu.utils.json import dumps

from bucketflow_celery.messages import codec as parcel

TAG = "0d6c3f0e-5c7f-4c0b-9e1c-8a6f1d2b3c4d"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
# Kombu's JSON turns objects with these keys into what they stand for.
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
    return parcel.unpack(packed, accept=None, redelivered=redelivered)


# In and out


@given(BODIES, PLAIN, PLAIN, PLAIN, st.booleans(), st.none() | st.floats(0, 2e9))
def test_a_message_comes_out_as_it_went_in(  # noqa: PLR0913, PLR0917
    body, headers, properties, delivery_info, redelivered, since
):
    packed = parcel.pack(message(body, headers, properties, delivery_info), since=since)
    assert isinstance(packed, bytes)
    again, facts = unpacked(packed, redelivered=redelivered)
    assert (again.body, type(again.body)) == (body, type(body))
    assert (again.headers, again.properties) == (headers, properties)
    assert again.delivery_info == {**delivery_info, "redelivered": redelivered}
    assert (again.content_type, again.content_encoding) == ("application/json", "utf-8")
    assert facts == {"since": since}


def test_what_the_broker_added_stays_behind():
    headers = {"task": "f", "x-death": [{"count": 1}], "x-delivery-count": 3, "x-mine": 1}
    assert unpacked(parcel.pack(message(headers=headers)))[0].headers == {"task": "f", "x-mine": 1}


def test_a_body_that_was_sent_packed_is_unpacked_once():
    body, how = compress(b"[[1], {}, {}]", "gzip")
    again, _ = unpacked(parcel.pack(message(body, {"task": "f", "compression": how})))
    assert (again.body, again.headers["compression"], again.errors) == (b"[[1], {}, {}]", how, [])


def test_a_message_that_is_parked_twice_is_the_same():
    first = parcel.pack(message(b"\x00\xff"), since=1.5)
    again, facts = unpacked(first)
    assert parcel.pack(again, **facts) == first


@pytest.mark.parametrize("part", ["headers", "properties"])
def test_what_is_no_json_cannot_be_parked(part):
    with pytest.raises(TypeError):
        parcel.pack(message(**{part: {"odd": object()}}))


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


def packed_by_hand(head, body=b""):
    raw = dumps(head).encode()
    return struct.pack("<I", len(raw)) + raw + body


GARBAGE = [
    b"",
    b"\x00",
    b"\x05\x00\x00\x00{}",
    b"\xff\xff\xff\xff{}",
    b"\x02\x00\x00\x00\xff\xfe",
    packed_by_hand([]),
    packed_by_hand({}),
    packed_by_hand({**HEAD, "headers": [1]}),
    packed_by_hand({**HEAD, "delivery_info": 3}),
    packed_by_hand({**HEAD, "is_text": True}, b"\xff"),
    *(packed_by_hand({key: value for key, value in HEAD.items() if key != name}) for name in HEAD),
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_what_is_no_parcel_is_said_to_be_none(garbage):
    with pytest.raises(ValueError, match=r".*"):
        unpacked(garbage)


@given(st.binary())
def test_whatever_is_no_parcel_raises_nothing_else(garbage):
    with pytest.raises(ValueError, match=r".*"):
        unpacked(garbage)


# Names


@given(BODIES, PLAIN)
def test_a_second_delivery_has_the_same_uid(body, headers):
    brokers = {"x-death": [{"count": 2}], "x-first-death-queue": "q", "x-delivery-count": 7, "x-acquired-count": 1}
    first = message(body, headers)
    second = message(body, {**brokers, **dict(reversed(headers.items()))}, delivery_info={"redelivered": True})
    assert parcel.uid_of(first, "q") == parcel.uid_of(second, "q")
    assert len(parcel.uid_of(first, "q")) == parcel.UID_SIZE


def test_a_message_that_was_parked_has_the_same_uid():
    first = message("[[1], {}, {}]", {"task": "f", "id": "1", "x-death": []})
    assert parcel.uid_of(unpacked(parcel.pack(first))[0], "q") == parcel.uid_of(first, "q")


@given(st.tuples(st.binary(), PLAIN), st.tuples(st.binary(), PLAIN))
def test_different_messages_have_different_uids(one, other):
    same = (one[0], dumps(one[1], sort_keys=True)) == (other[0], dumps(other[1], sort_keys=True))
    assert (parcel.uid_of(message(*one), "q") == parcel.uid_of(message(*other), "q")) == same


def test_the_tag_that_kombu_gives_a_published_message_is_its_name():
    def uid(tag, body=b"[]"):
        return parcel.uid_of(message(body, properties={"delivery_tag": tag}), "q")

    assert uid(TAG) == uid(TAG, b"whatever")
    assert uid(TAG) != uid(TAG.replace("0", "1"))
    assert uid(1) == uid(2), "RabbitMQ counts deliveries: that is no name"


def test_salt_tells_twins_apart():
    assert parcel.uid_of(message(), "q", b"1") != parcel.uid_of(message(), "q")
    assert parcel.uid_of(message(), "q", b"1") != parcel.uid_of(message(), "q", b"2")
    assert parcel.uid_of(message(), "q") != parcel.uid_of(message(), "other")


# What the broker says


@pytest.mark.parametrize(
    ("info", "fresh", "redelivered"),
    [({}, False, False), ({"redelivered": False}, True, False), ({"redelivered": True}, False, True)],
)
def test_only_a_broker_that_says_so_delivers_for_the_first_time(info, fresh, redelivered):
    delivered = message(delivery_info=info)
    assert (parcel.is_fresh(delivered), parcel.is_redelivered(delivered)) == (fresh, redelivered)


@pytest.mark.parametrize(
    ("headers", "complete"),
    [({"task": "f", "id": "1"}, True), ({"task": "f"}, False), ({"id": "1"}, False), ({}, False)],
)
def test_only_messages_of_protocol_2_can_be_parked(headers, complete):
    assert parcel.is_complete(SimpleNamespace(headers=headers)) == complete


RANKS = [
    # priority, rank where the highest comes first (RabbitMQ), where the lowest does (Redis)
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
def test_the_rank_follows_the_priority_as_the_broker_means_it(priority, highest_first, lowest_first):
    sent = message(properties={} if priority is None else {"priority": priority})
    assert parcel.rank_of(sent, highest_first=True) == highest_first
    assert parcel.rank_of(sent, highest_first=False) == lowest_first
