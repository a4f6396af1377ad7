"""
Queue of origin: the queue that a message was delivered from.

Only some brokers name it, by consumer tag. For the others it follows from the exchange and the routing key, by the
bindings of the queues that this worker consumes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["DELAYED_KEY_PREFIX", "most_likely", "queue_of", "queues_of"]

#: Prefix of the routing key under which native delayed delivery returns a republished message to its queue. The queue's
#: name follows.
DELAYED_KEY_PREFIX = "bucketflow."

# Native delayed delivery puts the bits of the delay before the key.
_DELAYED_KEY = re.compile(r"(?:[01]\.)+" + re.escape(DELAYED_KEY_PREFIX))


def queue_of(delivery_info: Mapping[str, Any], tags: Mapping[str, str], queues: Mapping[str, Any]) -> str:
    """
    Return the name of the queue that a message was most likely delivered from.

    See :func:`queues_of`, which has the same arguments, and :func:`most_likely`.
    """
    return most_likely(queues_of(delivery_info, tags, queues), delivery_info)


def most_likely(names: Sequence[str], delivery_info: Mapping[str, Any]) -> str:
    """Return the first of *names*, which :func:`queues_of` returned; the routing key if there is none."""
    return names[0] if names else delivery_info.get("routing_key") or ""


def queues_of(delivery_info: Mapping[str, Any], tags: Mapping[str, str], queues: Mapping[str, Any]) -> list[str]:
    """
    Return the names of the queues that a message may have been delivered from.

    Args:
        delivery_info: The message's delivery info: exchange, routing key and, from some brokers, the consumer tag.
        tags: Queue names by consumer tag.
        queues: The queues that this worker consumes, by name, as Kombu's ``Queue``.

    Returns:
        One name if the broker names the queue or only one queue matches. Several if several match, none if none does.
    """
    name = tags.get(delivery_info.get("consumer_tag", ""))
    if name is not None:
        return [name]
    key = delivery_info.get("routing_key") or ""
    delayed = _DELAYED_KEY.match(key)
    if delayed is not None:
        return [key[delayed.end() :]]
    exchange = delivery_info.get("exchange") or ""
    if not exchange:
        return [key] if key in queues else []
    return [name for name, queue in queues.items() if _is_bound(queue, exchange, key)]


def _is_bound(queue: Any, exchange: str, key: str) -> bool:
    bindings = [(queue.exchange, queue.routing_key), *((one.exchange, one.routing_key) for one in queue.bindings or ())]
    return any(
        source is not None and source.name == exchange and _matches(source.type, pattern or "", key)
        for source, pattern in bindings
    )


def _matches(exchange_type: str, pattern: str, key: str) -> bool:
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        words = re.escape(pattern).replace(r"\*", r"[^.]+")
        # "#" matches any number of words. If it matches none, its dot goes too.
        words = words.replace(r"\.\#", r"(?:\..*)?").replace(r"\#\.", r"(?:.*\.)?").replace(r"\#", ".*")
        return re.fullmatch(words, key) is not None
    return pattern == key
