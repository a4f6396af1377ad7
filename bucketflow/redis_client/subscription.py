"""Subscriptions to channels, for synchronous clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep
from typing import Any, Protocol

from bucketflow.redis_client.connection import Node

__all__ = ["Subscription", "subscription_to"]


class Subscription(Protocol):
    """A subscription to one channel."""

    def get(self, timeout: float) -> bytes | None:
        """Return the next published message, or ``None`` after *timeout* seconds without one."""


class _Silence:
    """The subscription over a node with one connection, which the calls need: there are no messages."""

    def get(self, timeout: float) -> bytes | None:
        """See :class:`Subscription`."""
        sleep(timeout)
        return None


class _PubSub:
    """
    A subscription with a connection of its own.

    Args:
        pubsub: A redis-py ``PubSub`` that has subscribed already.
    """

    def __init__(self, pubsub: Any) -> None:  # noqa: ANN401 - redis-py's
        self._pubsub = pubsub

    def get(self, timeout: float) -> bytes | None:
        """See :class:`Subscription`."""
        message = self._pubsub.get_message(timeout=timeout)
        return None if message is None else message["data"]


@contextmanager
def subscription_to(node: Node, channel: str) -> Iterator[Subscription]:
    """
    Return a context manager that yields a subscription to *channel* of *node*.

    Raises what redis-py raises, and so does :meth:`Subscription.get`.
    """
    if node.max_connections == 1:
        yield _Silence()
        return
    pubsub = node.client.pubsub(ignore_subscribe_messages=True)
    try:
        pubsub.connection = node.connect()  # else it would take one from the pool that was idle for too long
        pubsub.connection.register_connect_callback(pubsub.on_connect)
        pubsub.subscribe(channel)
        yield _PubSub(pubsub)
    finally:
        pubsub.close()
