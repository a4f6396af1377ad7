"""Parking, where it meets Celery: a request becomes a parcel, and what is handed out becomes a request again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls
from celery.worker.state import task_reserved
from kombu.exceptions import ContentDisallowed

from bucketflow.limit import SECOND
from bucketflow_celery import parcel
from bucketflow_celery.backlog import Handed, Lane, Parcel
from bucketflow_celery.lines import Entry

__all__ = ["PARKED", "Parking"]

logger = logging.getLogger(__name__)

#: The state of a parked task's result.
PARKED = "PARKED"


class Parking:
    """
    Turns requests into parcels and back, on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._highest_first = consumer.connection.transport.driver_type == "amqp"
        self._classes: dict[str, Any] = {}

    def pack(self, entry: Entry, *, again: bool) -> Parcel:
        """
        Return *entry* ready to be parked.

        Args:
            entry: The task.
            again: Whether another message is parked already that looks the same.

        Raises:
            TypeError: Its headers cannot be written as JSON.
        """
        request, passage = entry.request, entry.passage
        message = request.message
        return Parcel(
            parcel.uid_of(message, os.urandom(8) if again else b""),
            Lane(passage.tenant or "", request.task.name, parcel.rank_of(message, highest_first=self._highest_first)),
            parcel.pack(message, since=entry.since),
            passage.cost,
            _patience(entry),
            redelivered=bool(message.delivery_info.get("redelivered")),
        )

    def receive(self, handed: Handed, on_end: Callable[[bool], None]) -> tuple[Any, float | None] | None:
        """
        Return a task that was handed out, as a request, and when it was first refused, in seconds since the Unix epoch.

        ``None`` if nobody can read it: as Celery does with what it cannot read, it is logged and dropped.
        """
        try:
            message, facts = parcel.unpack(
                handed.message,
                accept=self._consumer.task_consumer.accept,
                redelivered=handed.owned.item.redelivered,
            )
            request = self._request(message, on_end)
        except (ValueError, KeyError, ContentDisallowed, InvalidTaskError) as error:
            logger.critical("a parked task of %s cannot be read: %r", handed.owned.lane.task, error, exc_info=True)
            return None
        task_reserved(request)
        return request, facts.get("since")

    def _request(self, message: Any, on_end: Callable[[bool], None]) -> Any:
        # Not through the task's strategy: that would tell of its receipt a second time, and wait for its ETA again.
        consumer = self._consumer
        task = consumer.app.tasks[message.headers["task"]]
        request_class = self._classes.get(task.name)
        if request_class is None:
            request_class = self._classes[task.name] = create_request_cls(
                symbol_by_name(task.Request),
                task,
                consumer.pool,
                consumer.hostname,
                consumer.event_dispatcher,
                app=consumer.app,
            )

        def on_ack(_logger: Any, _errors: Any) -> None:
            on_end(False)  # noqa: FBT003 - it does not go back

        def on_reject(_logger: Any, _errors: Any, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's
            on_end(requeue)

        return request_class(
            message,
            on_ack=on_ack,
            on_reject=on_reject,
            app=consumer.app,
            hostname=consumer.hostname,
            eventer=consumer.event_dispatcher,
            task=task,
            connection_errors=consumer.connection_errors,
            body=message.body,
            headers=message.headers,
            decoded=False,
            utc=consumer.app.uses_utc_timezone(),
        )

    def tell(self, request: Any, facts: Mapping[str, Any]) -> None:
        """Store ``PARKED`` and *facts* as the state of the task's result, where there is a backend."""
        if request.ignore_result or request.task.backend is None:
            return
        try:
            request.task.backend.store_result(request.id, dict(facts), PARKED, request=request._context)  # noqa: SLF001
        except Exception:
            logger.exception("that %s is parked could not be stored", request.id)


def _patience(entry: Entry) -> int:
    """Return the µs after which the task need not be started any more; 0: never."""
    now = datetime.now(timezone.utc)
    ends = []
    if entry.request.expires is not None:
        ends.append((entry.request.expires - now).total_seconds())
    if entry.passage.max_wait is not None:
        since = entry.since if entry.since is not None else now.timestamp()
        ends.append(entry.passage.max_wait - (now.timestamp() - since))
    return max(1, round(min(ends) * SECOND)) if ends else 0
