"""The longest waits of a message in a worker: how long its broker lets it be unacknowledged."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

from bucketflow_celery.admission.interfaces import WaitLimits
from bucketflow_celery.config.settings import Settings

__all__ = ["CONSUMER_TIMEOUT_ARGUMENT", "consumer_timeout_of", "wait_limits", "wait_limits_of"]

#: Argument of a queue or a consumer of RabbitMQ that replaces the node's ``consumer_timeout``, in ms.
CONSUMER_TIMEOUT_ARGUMENT = "x-consumer-timeout"


def wait_limits_of(consumer: Any, settings: Settings) -> WaitLimits:
    """Return the limits of Celery's *consumer*, connected."""
    connection = consumer.connection
    visibility_timeout = getattr(connection.default_channel, "visibility_timeout", None) or inf
    consumer_timeout = inf
    if connection.transport.driver_type == "amqp":
        consumer_timeout = consumer_timeout_of(consumer.app.amqp.queues.consume_from.values(), settings)
    return wait_limits(settings.max_hold, settings.max_countdown, visibility_timeout, consumer_timeout)


def consumer_timeout_of(queues: Iterable[Any], settings: Settings) -> float:
    """
    Return the seconds after which RabbitMQ closes the channel of an unacknowledged message.

    A client cannot ask for the value of the node, or of a policy: the option says it.

    Args:
        queues: The consumed queues, as Kombu's ``Queue``. The argument of a queue, or of its consumer, has precedence.
        settings: The options.
    """
    return min(
        (_declared_timeout(queue) or settings.consumer_timeout for queue in queues), default=settings.consumer_timeout
    )


def wait_limits(
    max_hold: float, max_countdown: float, visibility_timeout: float, consumer_timeout: float
) -> WaitLimits:
    """
    Return the limits that both timeouts allow. All are in seconds.

    Args:
        max_hold: As configured.
        max_countdown: As configured.
        visibility_timeout: After which Redis delivers an unacknowledged message again; infinity: never.
        consumer_timeout: After which RabbitMQ closes the channel of an unacknowledged message; infinity: never.
    """
    # Of the quarter that a message may wait here, its ETA takes four fifths, and the rest is for a slot. A second
    # delivery means that a task runs twice, so the share is small.
    by_visibility = WaitLimits(visibility_timeout / 4, visibility_timeout / 5, visibility_timeout / 4)
    # A closed channel delivers again what has not started. The default of 30 min allows the other defaults.
    by_consumer = WaitLimits(consumer_timeout / 3, consumer_timeout / 2, consumer_timeout * 5 / 6)
    return WaitLimits(
        min(max_hold, by_visibility.max_hold, by_consumer.max_hold),
        min(max_countdown, by_visibility.max_countdown, by_consumer.max_countdown),
        min(by_visibility.max_unacknowledged, by_consumer.max_unacknowledged),
    )


def _declared_timeout(queue: Any) -> float | None:
    arguments = [given or {} for given in (queue.queue_arguments, queue.consumer_arguments)]
    declared = [given.get(CONSUMER_TIMEOUT_ARGUMENT) for given in arguments]
    return min((ms / 1000 for ms in declared if isinstance(ms, (int, float)) and ms > 0), default=None)
