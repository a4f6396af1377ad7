"""
Held tasks among Celery's reserved requests: ``inspect reserved`` and ``query_task`` show them.

By the number of reserved requests Celery also decides how many processes its autoscaler keeps, and under
``worker_disable_prefetch`` whether to fetch another message. A held task takes no process, so the autoscaler must not
count it. Another message is worth fetching only if its task could start while the held one waits.
"""

from __future__ import annotations

from typing import Any

from celery.worker import state

__all__ = ["HeldRequests"]


class HeldRequests:
    """
    The held requests of a worker process.

    Args:
        controller: Celery's ``WorkController``.
    """

    def __init__(self, controller: Any) -> None:
        self._controller = controller
        self._held: set[Any] = set()
        self._blocking: set[Any] = set()  # those of them behind which no other task can start

    def add(self, request: Any, *, is_blocking: bool = False) -> None:
        """Record that *request* is held, and whether no other task can start meanwhile."""
        self._held.add(request)
        if is_blocking:
            self._blocking.add(request)

    def discard(self, request: Any) -> None:
        """Record that *request* is held no more."""
        self._held.discard(request)
        self._blocking.discard(request)

    def reserved(self) -> int:
        """Return the number of reserved requests that are not held."""
        return max(0, len(state.reserved_requests) - len(self._held))

    def connect(self, consumer: Any) -> None:
        """Count for the autoscaler, and for *consumer*, on its new connection to the broker. No request is held yet."""
        self._held.clear()
        self._blocking.clear()
        autoscaler = getattr(self._controller, "autoscaler", None)
        if autoscaler is not None and not isinstance(autoscaler, _IgnoresHeld):
            autoscaler.held = self
            autoscaler.__class__ = type("Autoscaler", (_IgnoresHeld, type(autoscaler)), {})
        # Celery before 5.6 does not know the option.
        if consumer.app.conf.get("worker_disable_prefetch") and consumer.connection.transport.driver_type == "redis":
            self._replace_can_consume(consumer)

    def _replace_can_consume(self, consumer: Any) -> None:
        qos = consumer.task_consumer.channel.qos

        def can_consume() -> bool:
            # As Celery does; its own function counts all held requests.
            limit = getattr(self._controller, "max_concurrency", None) or consumer.pool.num_processes
            return self.reserved() + len(self._blocking) < limit and bool(type(qos).can_consume(qos))

        qos.can_consume = can_consume


class _IgnoresHeld:
    """An autoscaler that does not count held requests."""

    held: HeldRequests

    @property
    def qty(self) -> int:
        return self.held.reserved()
