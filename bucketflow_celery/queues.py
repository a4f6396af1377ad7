"""Which queue a message was delivered from: brokers do not all say so. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["ROUTE", "queue_of"]

#: A message that RabbitMQ has delayed for us comes back under this routing key, followed by its queue's name.
ROUTE = "bucketflow."

_DELAYED = re.compile(r"(?:[01]\.)+" + re.escape(ROUTE))


def queue_of(delivery_info: Mapping[str, Any], tags: Mapping[str, str], queues: Mapping[str, Any]) -> str:
    """
    Return the name of the queue a message came from.

    Args:
        delivery_info: Of the message: consumer tag where the broker tells it, exchange and routing key.
        tags: Queue names by consumer tag.
        queues: The queues this worker consumes, by name, as Kombu's ``Queue``.
    """
    name = tags.get(delivery_info.get("consumer_tag", ""))
    if name is not None:
        return name
    key = delivery_info.get("routing_key") or ""
    delayed = _DELAYED.match(key)
    if delayed is not None:
        return key[delayed.end() :]
    exchange = delivery_info.get("exchange") or ""
    if exchange:
        for name, queue in queues.items():
            if queue.exchange.name == exchange and _routes(queue.exchange.type, queue.routing_key, key):
                return name
    return key


def _routes(exchange_type: str, pattern: str, key: str) -> bool:
    if exchange_type == "fanout":
        return True
    if exchange_type == "topic":
        words = re.escape(pattern).replace(r"\*", r"[^.]+")
        # "#" stands for any number of words, and for none: then its dot goes with it.
        words = words.replace(r"\.\#", r"(?:\..*)?").replace(r"\#\.", r"(?:.*\.)?").replace(r"\#", ".*")
        return re.fullmatch(words, key) is not None
    return pattern == key
