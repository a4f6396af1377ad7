"""A message as it is parked: whole, as bytes, under a name that a second delivery of it has, too. Pure."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

from kombu import Message
from kombu.utils.json import dumps, loads

__all__ = ["BROKERS_OWN", "is_complete", "is_fresh", "is_redelivered", "pack", "rank_of", "uid_of", "unpack"]

#: What a broker adds to the headers on the way, different with each delivery. Sent back to RabbitMQ, x-death makes it
#: drop the message as running in circles.
BROKERS_OWN = ("x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-acquired-count")

#: Bytes of a uid: two of a billion messages are the same with a chance of one in 10^16.
UID_SIZE = 14
#: The best rank and the worst: RabbitMQ knows 256 priorities.
_RANKS = (0, 255)
#: Kombu's virtual transports give every message a UUID when it is published.
_UUID_LENGTH = 36


def is_complete(message: Any) -> bool:
    """Return whether *message* keeps what a task needs in its headers: it is of Celery's protocol 2."""
    return "task" in message.headers and "id" in message.headers


def uid_of(message: Any, queue: str, salt: bytes = b"") -> bytes:
    """
    Return what identifies *message* in *queue*, whoever it is delivered to, and however often.

    The tag that kombu gives a message when it is published, where it does; else all that is the publisher's.

    Args:
        message: As it was delivered.
        queue: Where from: a message that was routed to two queues is two tasks.
        salt: Tells apart two messages that are the same in all that.

    Raises:
        TypeError, ValueError: It cannot be written as JSON.
    """
    tag = message.properties.get("delivery_tag")
    if isinstance(tag, str) and len(tag) == _UUID_LENGTH:
        return _digest(queue.encode(), tag.encode())
    body = message.body if isinstance(message.body, bytes) else str(message.body).encode()
    return _digest(queue.encode(), dumps(_headers(message), sort_keys=True).encode(), body, salt)


def is_fresh(message: Any) -> bool:
    """Return whether its broker says that *message* is delivered for the first time: then it is parked nowhere."""
    return message.delivery_info.get("redelivered") is False


def is_redelivered(message: Any) -> bool:
    """Return whether its broker says that *message* was delivered before: then it may be parked."""
    return bool(message.delivery_info.get("redelivered"))


def rank_of(message: Any, *, highest_first: bool) -> int:
    """
    Return where *message* stands among others of its task type: the lowest rank first.

    Args:
        message: As it was delivered.
        highest_first: Whether its broker delivers the highest priority first, as RabbitMQ does; Redis the lowest.
    """
    priority = message.properties.get("priority")
    best, worst = _RANKS
    rank = priority if isinstance(priority, int) else 0
    rank = worst - rank if highest_first else rank
    return max(best, min(worst, rank))


def pack(message: Any, **facts: Any) -> bytes:
    """
    Return *message* as bytes: body, headers, properties and delivery info.

    Args:
        message: As it was delivered.
        facts: What else is to be kept: plain JSON.

    Raises:
        TypeError, ValueError: It cannot be written as JSON.
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
    body: bytes = message.body.encode() if is_text else message.body
    packed: bytes = struct.pack("<I", len(raw)) + raw + body
    return packed


def unpack(packed: bytes, *, accept: Any, redelivered: bool) -> tuple[Message, Mapping[str, Any]]:
    """
    Return the message that :func:`pack` was given, and its facts.

    Args:
        packed: What it returned.
        accept: The content types that may be decoded.
        redelivered: Whether a worker had it before.

    Raises:
        ValueError: *packed* is something else.
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
            message.headers["compression"] = head["compression"]  # not before: it would be unpacked a second time
        return message, head["facts"]
    except (struct.error, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{packed[:80]!r} is no parked message: {error!r}") from error


def _headers(message: Any) -> dict[str, Any]:
    # The body was unpacked when the message was received.
    return {
        name: value
        for name, value in message.headers.items()
        if name != "compression" and not name.startswith(BROKERS_OWN)
    }


def _digest(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=UID_SIZE)
    for part in parts:
        digest.update(part)
    return digest.digest()
