"""Send a message to its queue again: the same task, due later, with a ticket."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from kombu import Producer
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    calculate_routing_key,
    level_name,
)

from bucketflow_celery.messages.codec import BROKERS_OWN
from bucketflow_celery.messages.origin import ROUTE
from bucketflow_celery.scheduling.ticket import HEADER

__all__ = ["Republisher"]

#: What belongs to the message. Everything else in the properties belongs to the delivery.
_KEPT = ("correlation_id", "reply_to", "priority", "delivery_mode", "message_id", "timestamp", "type", "app_id")
#: Seconds that the broker may be silent: the worker's loop waits for it.
_PATIENCE = 5.0
#: RabbitMQ's own delays count whole seconds, from one on.
_SHORTEST_DELAY = 1.0


class Republisher:
    """
    Publishes copies of messages, each confirmed before :meth:`publish` returns where the broker can confirm.

    Args:
        app: The Celery app; a connection of its own is opened on the first use.
        delayed: Whether the broker delays messages itself (quorum queues), so that they need not wait in a worker.
    """

    def __init__(self, app: Any, *, delayed: bool) -> None:
        self._app = app
        self.delayed = delayed
        self._connection: Any = None
        self._producer: Any = None
        self._bound: set[str] = set()

    def publish(self, message: Any, queue: str, countdown: float, ticket: dict[str, Any]) -> None:
        """
        Publish a copy of *message*, due in *countdown* seconds.

        Args:
            message: As it was delivered.
            queue: The queue it was delivered from: it goes to this one only, however many its exchange feeds.
            countdown: Seconds; at least 1 where the broker does the delaying.
            ticket: The header to send along.

        Raises:
            Exception: Whatever the transport raises; the copy may or may not have been stored.
        """
        now = datetime.now(timezone.utc)
        producer = self._open()
        route = {"exchange": "", "routing_key": queue}
        if self.delayed:
            countdown = max(_SHORTEST_DELAY, countdown)
            route = self._delayed_route(queue, countdown)
        headers = {name: value for name, value in message.headers.items() if not name.startswith(BROKERS_OWN)}
        compression = headers.pop("compression", None)
        properties = {name: message.properties[name] for name in _KEPT if message.properties.get(name) is not None}
        producer.publish(
            message.body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            compression=compression,
            headers={**headers, "eta": (now + timedelta(seconds=countdown)).isoformat(), HEADER: ticket},
            expiration=_seconds_left(headers.get("expires"), now),
            retry=False,
            **route,
            **properties,
        )

    def close(self) -> None:
        """Close the connection; the next :meth:`publish` opens another."""
        connection, self._connection, self._producer = self._connection, None, None
        self._bound.clear()
        if connection is not None:
            connection.release()

    def _open(self) -> Any:
        if self._producer is None:
            options = {"confirm_publish": True, "read_timeout": _PATIENCE, "write_timeout": _PATIENCE}
            self._connection = self._app.connection_for_write(heartbeat=0, transport_options=options)
            # Left to itself Kombu connects when it is needed, and tries until the broker is back.
            self._connection.connect()
            self._producer = Producer(self._connection.channel(), auto_declare=False)
        return self._producer

    def _delayed_route(self, queue: str, countdown: float) -> dict[str, str]:
        # Celery binds the exchange of the task to its delays, which does not work for direct exchanges and would feed
        # every queue of a topic exchange. A binding of our own leads back to the one queue, whatever its exchange.
        key = f"{ROUTE}{queue}"
        if queue not in self._bound:
            self._producer.channel.queue_bind(
                queue=queue, exchange=CELERY_DELAYED_DELIVERY_EXCHANGE, routing_key=f"#.{key}"
            )
            self._bound.add(queue)
        return {"exchange": level_name(MAX_LEVEL), "routing_key": calculate_routing_key(int(countdown), key)}


def _seconds_left(expires: str | None, now: datetime) -> float | None:
    if expires is None:
        return None
    at = datetime.fromisoformat(expires.replace("Z", "+00:00"))
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp() - now.timestamp())
