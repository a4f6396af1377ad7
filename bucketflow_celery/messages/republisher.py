"""
Republication of a deferred message to its queue of origin, with an ETA and a ticket.

On quorum queues the copy goes through Celery's native delayed delivery. Elsewhere a worker receives it at once and
keeps it until its ETA, as it does with every countdown.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from kombu.compression import compress
from kombu.exceptions import ChannelError
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    calculate_routing_key,
    level_name,
)

from bucketflow_celery.messages.codec import BROKER_HEADERS
from bucketflow_celery.messages.origin import DELAYED_KEY_PREFIX
from bucketflow_celery.scheduling.ticket import HEADER

__all__ = ["Republisher"]

#: Properties of one delivery of a message, or of its way to a queue. The copy gets its own.
_DELIVERY_PROPERTIES = frozenset({"delivery_tag", "delivery_info", "body_encoding", "expiration"})
#: Properties of SQS that would delay the copy again, or drop it as one that was published before.
_SQS_PROPERTIES = frozenset({"delay_seconds", "DelaySeconds", "MessageDeduplicationId"})
#: What py-amqp lists among the properties, and Kombu passes apart.
_AMQP_PARTS = frozenset({"content_type", "content_encoding", "application_headers"})
#: Headers by which RabbitMQ routes a message to further queues.
_ROUTING_HEADERS = frozenset({"CC", "BCC"})
#: Seconds the broker may take to answer. The worker's event loop stands still meanwhile.
_PUBLISH_TIMEOUT = 5.0
#: Shortest native delay, in seconds. Native delayed delivery counts whole seconds.
_MIN_NATIVE_DELAY = 1.0


class Republisher:
    """
    Publishes copies of messages, and waits for the publisher confirm where the broker supports it.

    Args:
        app: The Celery app. The republisher opens a connection of its own on first use.
        delayed: Whether to use native delayed delivery (quorum queues), so that no worker keeps the message meanwhile.
    """

    def __init__(self, app: Any, *, delayed: bool) -> None:
        self._app = app
        self.delayed = delayed
        self._connection: Any = None
        self._channel: Any = None
        self._bound: set[str] = set()

    def publish(self, message: Any, queue: str, countdown: float, ticket: dict[str, Any], lead: float = 0.0) -> None:
        """
        Publish a copy of *message*, due in *countdown* seconds.

        Args:
            message: The message as it was delivered.
            queue: The queue it was delivered from. The copy goes to no other, whatever the bindings of its exchange.
            countdown: Seconds until the ETA. Native delayed delivery raises it to 1 and counts whole seconds.
            ticket: The value of the header that holds the ticket.
            lead: Seconds before the ETA at which native delayed delivery puts the copy at the end of its queue.

        Raises:
            Exception: Any error of the transport. The copy may have been stored nevertheless.
        """
        now = datetime.now(timezone.utc)
        channel = self._open()
        route = {"exchange": "", "routing_key": queue}
        if self.delayed:
            countdown = max(_MIN_NATIVE_DELAY, countdown)
            route = self._delayed_route(queue, max(_MIN_NATIVE_DELAY, countdown - lead))
        body, headers, properties = message.body, self._headers(message), self._properties(message)
        if "compression" in headers:  # Kombu has decompressed the body on delivery
            body, headers["compression"] = compress(body, headers["compression"])
        seconds_left = _seconds_left(headers.get("expires"), now)
        if seconds_left is not None:
            properties["expiration"] = str(int(seconds_left * 1000))
        headers |= {"eta": (now + timedelta(seconds=countdown)).isoformat(), HEADER: ticket}
        # Not through Kombu's producer: properties may have the names of its arguments.
        priority, parts = properties.pop("priority", None), (message.content_type, message.content_encoding)
        channel.basic_publish(channel.prepare_message(body, priority, *parts, headers, properties), **route)

    def messages_in(self, queue: str) -> int:
        """Return the number of messages that wait in *queue*; 0 if the broker does not say."""
        try:
            return int(self._open().queue_declare(queue, passive=True).message_count)
        except ChannelError:  # on Redis, an empty queue does not exist
            if self._is_amqp:
                self.close()  # the broker has closed the channel
        except Exception:  # noqa: BLE001 - whatever the transport raises, it is only an estimate
            self.close()
        return 0

    def close(self) -> None:
        """Close the connection. The next :meth:`publish` opens a new one."""
        connection, self._connection, self._channel = self._connection, None, None
        self._bound.clear()
        if connection is not None:
            connection.release()

    @property
    def _is_amqp(self) -> bool:
        return bool(self._connection.transport.driver_type == "amqp")

    def _open(self) -> Any:
        """Return a channel of the connection."""
        if self._channel is None:
            options = {"confirm_publish": True, "read_timeout": _PUBLISH_TIMEOUT, "write_timeout": _PUBLISH_TIMEOUT}
            self._connection = self._app.connection_for_write(heartbeat=0, transport_options=options)
            # Explicitly, because Kombu's implicit connect retries until the broker is available again.
            self._connection.connect()
            self._channel = self._connection.channel()
        return self._channel

    def _headers(self, message: Any) -> dict[str, Any]:
        """Return the headers that the publisher set."""
        left_out = BROKER_HEADERS | _ROUTING_HEADERS if self._is_amqp else BROKER_HEADERS
        return {name: value for name, value in message.headers.items() if name not in left_out}

    def _properties(self, message: Any) -> dict[str, Any]:
        """Return the properties that the publisher set."""
        left_out = _DELIVERY_PROPERTIES
        if self._is_amqp:
            left_out |= _AMQP_PARTS
            if message.properties.get("user_id") != self._connection.info().get("userid"):
                left_out |= {"user_id"}  # RabbitMQ accepts no other user's
        elif self._connection.transport.driver_type == "sqs":
            left_out |= _SQS_PROPERTIES
        return {name: value for name, value in message.properties.items() if name not in left_out}

    def _delayed_route(self, queue: str, countdown: float) -> dict[str, str]:
        # Celery binds the task's exchange to the delayed delivery exchange. That does not work for a direct exchange,
        # and a topic exchange would give the copy to every bound queue. This binding leads to the one queue instead.
        key = f"{DELAYED_KEY_PREFIX}{queue}"
        if queue not in self._bound:
            self._channel.queue_bind(queue=queue, exchange=CELERY_DELAYED_DELIVERY_EXCHANGE, routing_key=f"#.{key}")
            self._bound.add(queue)
        return {"exchange": level_name(MAX_LEVEL), "routing_key": calculate_routing_key(int(countdown), key)}


def _seconds_left(expires: str | None, now: datetime) -> float | None:
    if expires is None:
        return None
    at = datetime.fromisoformat(expires.replace("Z", "+00:00"))
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() - now.timestamp())
