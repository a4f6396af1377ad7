"""
Encoding and deduplication id of a parked message.

:func:`pack` and :func:`unpack` turn a Kombu message into bytes and back. :func:`uid_of` returns an id that is the same
for every delivery of a message. By this id the backlog recognises a redelivered message that is parked already. Both
results are fields of :class:`bucketflow_celery.scheduling.model.ParkedMessage`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from kombu import Message
from kombu.utils.json import dumps, loads

from bucketflow_celery.scheduling.admit import NO_DEADLINE

__all__ = ["BROKER_HEADERS", "is_complete", "pack", "rank_of", "readdressed", "uid_of", "unpack"]

#: Headers that a broker adds, different with each delivery. RabbitMQ drops a message that is published with its own
#: x-death header, as one that cycles between queues.
BROKER_HEADERS = frozenset(
    {"x-death", "x-delivery-count", "x-acquired-count"}
    | {f"x-{which}-death-{fact}" for which in ("first", "last") for fact in ("exchange", "queue", "reason")}
)

#: Bytes of a uid. Among a billion messages, two have the same uid with a probability of one in 10^16.
UID_SIZE = 14
#: Range of ranks, as RabbitMQ has 256 priorities.
_FIRST_RANK, _LAST_RANK = 0, 255
#: Length of the delivery tag, a UUID, that Kombu's virtual transports give a message when it is published.
_UUID_LENGTH = 36


def is_complete(message: Any) -> bool:
    """Return whether *message* is of Celery's protocol 2, which keeps the task's facts in the headers."""
    return "task" in message.headers and "id" in message.headers


def uid_of(message: Any, queue: str, salt: bytes = b"") -> bytes:
    """
    Return the deduplication id of *message* in *queue*: the same for every delivery of it, to any worker.

    It is a digest of the UUID that Kombu gives a message when it is published. Without a UUID it is a digest of what
    the publisher wrote: headers and body.

    Args:
        message: The message as it was delivered.
        queue: The queue it was delivered from. A message that was routed to two queues is two tasks.
        salt: Distinguishes two messages with the same headers and body.

    Raises:
        TypeError, ValueError: The headers cannot be written as JSON.
    """
    tag = message.properties.get("delivery_tag")
    # RabbitMQ's tag is the number of the delivery, so it identifies no message.
    if isinstance(tag, str) and len(tag) == _UUID_LENGTH:
        return _digest(queue.encode(), tag.encode())
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    return _digest(queue.encode(), dumps(_headers(message), sort_keys=True).encode(), body, salt)


def rank_of(message: Any, *, highest_first: bool) -> int:
    """
    Return the rank of *message* by its priority, 0 to 255. Messages of the lowest rank are dispatched first.

    Args:
        message: The message as it was delivered.
        highest_first: Whether the broker delivers the highest priority first. RabbitMQ does, Redis does not.
    """
    priority = message.properties.get("priority")
    rank = priority if isinstance(priority, int) else 0
    rank = _LAST_RANK - rank if highest_first else rank
    return max(_FIRST_RANK, min(_LAST_RANK, rank))


def pack(message: Any, **facts: Any) -> bytes:
    """
    Encode *message* as bytes: body, headers, properties and delivery info.

    Args:
        message: The message as it was delivered.
        facts: Further values to store with it: plain JSON.

    Raises:
        TypeError, ValueError: Something other than the body cannot be written as JSON.
    """
    is_text = not isinstance(message.body, bytes)
    head = {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": _headers(message),
        "compression": message.headers.get("compression"),
        "properties": message.properties,
        "delivery_info": message.delivery_info,
        "is_text": is_text,
        "facts": facts,
    }
    raw = dumps(head, separators=(",", ":")).encode()
    if b'"__type__"' in raw and loads(raw) != head:
        raise ValueError("a value looks like one of Kombu's JSON types, and would be decoded to something else")
    body: bytes = message.body.encode() if is_text else message.body
    packed: bytes = struct.pack("<I", len(raw)) + raw + body
    return packed


def unpack(packed: bytes, *, accept: Any, redelivered: bool) -> tuple[Message, Mapping[str, Any]]:
    """
    Decode the message that :func:`pack` encoded, and the facts stored with it.

    Args:
        packed: The result of :func:`pack`.
        accept: The content types that may be deserialized.
        redelivered: The message's new ``redelivered`` flag: whether it was dispatched to a worker before.

    Raises:
        ValueError: *packed* is no result of :func:`pack`.
    """
    try:
        (length,) = struct.unpack_from("<I", packed)
        head = loads(packed[4 : 4 + length])
        body: Any = packed[4 + length :]
        message = Message(
            body.decode() if head["is_text"] else body,
            content_type=head["content_type"],
            content_encoding=head["content_encoding"],
            headers=head["headers"],
            properties=head["properties"],
            delivery_info=dict(head["delivery_info"], redelivered=redelivered),
            accept=accept,
        )
        if head["compression"] is not None:
            # Message() decompresses the body if it finds this header. The stored body is decompressed already.
            message.headers["compression"] = head["compression"]
        return message, head["facts"]
    except (struct.error, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{packed[:80]!r} is not a parked message: {error!r}") from error


def readdressed(packed: bytes, queue: str) -> bytes:
    """
    Return a packed message as if it had been published to *queue* itself, so that a retry of its task goes there.

    What is no packed message is returned unchanged: a worker will report it.
    """
    try:
        (length,) = struct.unpack_from("<I", packed)
        head, body = loads(packed[4 : 4 + length]), packed[4 + length :]
        head["delivery_info"] = {**head["delivery_info"], "exchange": "", "routing_key": queue}
        if "seen" in head["facts"]:
            head["facts"] = {**head["facts"], "seen": NO_DEADLINE}  # no earlier purge of *queue* concerns it
    except (struct.error, ValueError, LookupError, TypeError):
        return packed
    raw: bytes = dumps(head, separators=(",", ":")).encode()
    return struct.pack("<I", len(raw)) + raw + body


def _headers(message: Any) -> dict[str, Any]:
    # Without compression: Kombu has decompressed the body on delivery, and the header describes it no more.
    return {
        name: value for name, value in message.headers.items() if name != "compression" and name not in BROKER_HEADERS
    }


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=UID_SIZE)
    for part in parts:
        digest.update(part)
    return digest.digest()
