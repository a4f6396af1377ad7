"""Which queue a message was delivered from: brokers do not all say so. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["ROUTE", "queue_of", "queues_of"]

#: A message that RabbitMQ has delayed for us comes back under this routing key, followed by its queue's name.
ROUTE = "bucketflow."

_DELAYED = re.compile(r"(?:[01]\.)+" + re.escape(ROUTE))


def queue_of(delivery_info: Mapping[str, Any], tags: Mapping[str, str], queues: Mapping[str, Any]) -> str:
    """Return the name of the queue a message most likely came from; arguments as in :func:`queues_of`."""
    found = queues_of(delivery_info, tags, queues)
    return found[0] if found else delivery_info.get("routing_key") or ""


def queues_of(delivery_info: Mapping[str, Any], tags: Mapping[str, str], queues: Mapping[str, Any]) -> list[str]:
    """
    Return the names of the queues a message may have come from.

    One, where the broker tells it or only one of those that this worker consumes fits; none, where none does.

    Args:
        delivery_info: Of the message: consumer tag where the broker tells it, exchange and routing key.
        tags: Queue names by consumer tag.
        queues: The queues this worker consumes, by name, as Kombu's ``Queue``.
    """
    name = tags.get(delivery_info.get("consumer_tag", ""))
    if name is not None:
        return [name]
    key = delivery_info.get("routing_key") or ""
    delayed = _DELAYED.match(key)
    if delayed is not None:
        return [key[delayed.end() :]]
    exchange = delivery_info.get("exchange") or ""
    if not exchange:
        return [key] if key in queues else []
    return [name for name, queue in queues.items() if _feeds(exchange, key, queue)]


def _feeds(exchange: str, key: str, queue: Any) -> bool:
    bindings = [(queue.exchange, queue.routing_key), *((one.exchange, one.routing_key) for one in queue.bindings or ())]
    return any(
        source is not None and source.name == exchange and _routes(source.type, pattern or "", key)
        for source, pattern in bindings
    )


def _routes(exchange_type: str, pattern: str, key: str) -> bool:
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        words = re.escape(pattern).replace(r"\*", r"[^.]+")
        # "#" stands for any number of words, and for none: then its dot goes with it.
        words = words.replace(r"\.\#", r"(?:\..*)?").replace(r"\#\.", r"(?:.*\.)?").replace(r"\#", ".*")
        return re.fullmatch(words, key) is not None
    return pattern == key
