"""Parking, where it meets Celery: a request becomes a parcel, and what is handed out becomes a request again."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from math import inf
from typing import Any

from celery import states
from celery.exceptions import InvalidTaskError
from celery.utils.imports import symbol_by_name
from celery.worker.request import create_request_cls
from celery.worker.state import task_reserved
from kombu.exceptions import ContentDisallowed

from bucketflow.errors import BucketflowError
from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.config.levels import check_cost
from bucketflow_celery.config.policy import Passage
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.messages import codec as parcel
from bucketflow_celery.scheduling.model import Handed, Lane, Parcel
from bucketflow_celery.worker.celery_worker import WorkerHost

__all__ = ["PARKED", "Parking", "can_be_parked"]

logger = logging.getLogger(__name__)

#: The state of a parked task's result.
PARKED = "PARKED"

#: What can be wrong with a message that nobody will ever be able to read.
_UNREADABLE = (ValueError, KeyError, ContentDisallowed, InvalidTaskError)


def can_be_parked(host: WorkerHost | None, request: Any, queue: str) -> bool:
    """Return whether the message of *request* can wait outside of its *queue*, and come back to it."""
    if host is None or not parcel.is_complete(request.message):
        return False
    return host.is_from(request, queue) and not host.is_broadcast(queue)


class Parking:
    """
    Implements :class:`bucketflow_celery.parking.interfaces.RoomHost` on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        host: The worker, as the gate sees it.
        call_soon: Runs a callback in the worker's own loop; called from any thread.
    """

    def __init__(self, consumer: Any, host: WorkerHost, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._consumer = consumer
        self._host = host
        self._throttle = consumer.app.bucketflow
        self._highest_first = consumer.connection.transport.driver_type == "amqp"
        self._classes: dict[str, Any] = {}
        self.call_soon = call_soon
        self.is_gone = host.is_gone
        self.start = host.start
        self.monotonic = host.monotonic

    def queues(self) -> Sequence[str]:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        return list(self._consumer.app.amqp.queues.consume_from)

    def is_fresh(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        return parcel.is_fresh(entry.request.message)

    def is_redelivered(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        return parcel.is_redelivered(entry.request.message)

    def parcel(self, entry: Entry, *, again: bool) -> Parcel | None:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        request, passage = entry.request, entry.passage
        message = request.message
        try:
            return Parcel(
                parcel.uid_of(message, entry.queue, os.urandom(8) if again else b""),
                Lane(
                    passage.tenant or "", request.task.name, parcel.rank_of(message, highest_first=self._highest_first)
                ),
                parcel.pack(message, since=entry.since),
                passage.cost,
                _patience(entry),
                redelivered=parcel.is_redelivered(message),
            )
        except (TypeError, ValueError) as error:
            logger.warning("%s stays in the worker, it cannot be parked: %s", request.id, error)
            return None

    def parked(self, entry: Entry, position: int) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        if position > 0 and self._throttle.settings.parked_state:
            self._tell(entry, position)
        self._host.acknowledge(entry.request)

    def receive(self, handed: Handed, on_end: Callable[[bool], None]) -> Entry | None:
        """
        See :class:`~bucketflow_celery.parking.interfaces.RoomHost`.

        As Celery does, it drops what nobody can read.
        """
        owned = handed.owned
        try:
            message, facts = parcel.unpack(
                handed.message, accept=self._consumer.task_consumer.accept, redelivered=owned.item.redelivered
            )
            request = self._request(message, on_end)
        except _UNREADABLE:
            logger.critical("a parked task of %s cannot be read: %r", owned.lane.task, handed.message, exc_info=True)
            return None
        task_reserved(request)
        return Entry(request, owned.queue, Passage(()), self.monotonic(), facts.get("since"))

    def give_up(self, entry: Entry) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        request = entry.request
        if self.is_gone(entry):
            return
        try:
            passage = self._throttle.book.passage(
                request.task, request.request_dict, request.args, request.kwargs, entry.queue
            )
            check_cost(passage.path, passage.cost)
        except BucketflowError as error:
            self._host.fail(request, error)
            return
        waited = 0.0 if entry.since is None else self._host.time() - entry.since
        if passage.max_wait is None or (request.expires is not None and waited < passage.max_wait):
            # The store's clock is a little ahead of this worker's.
            self._expire(request)
            return
        level = passage.path[-1].name if passage.path else "queue"
        self._host.fail(request, ThrottleTimeout(level, waited, passage.max_wait))

    def _expire(self, request: Any) -> None:
        try:
            # Celery's own way to say so.
            request._announce_revoked("expired", False, None, True)  # noqa: FBT003, SLF001
        except Exception:
            logger.exception("the end of %s could not be stored", request.id)

    def is_settled(self, entry: Entry) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        return bool(entry.request.acknowledged)

    def lacks_slots(self, more: bool) -> None:  # noqa: FBT001
        """See :class:`~bucketflow_celery.parking.interfaces.RoomHost`."""
        autoscaler = getattr(self._consumer.controller, "autoscaler", None)
        # It counts what the worker has received, which is never more than it has slots: what is parked waits elsewhere.
        if more and autoscaler is not None and autoscaler.processes < autoscaler.max_concurrency:
            autoscaler.scale_up(1)

    def _request(self, message: Any, on_end: Callable[[bool], None]) -> Any:
        # Not through the task's strategy: that would tell of its receipt a second time, and wait for its ETA again.
        consumer = self._consumer
        task = consumer.app.tasks[message.headers["task"]]
        request_class = self._classes.get(task.name)
        if request_class is None:
            request_class = self._classes[task.name] = _returning(
                create_request_cls(
                    symbol_by_name(task.Request),
                    task,
                    consumer.pool,
                    consumer.hostname,
                    consumer.event_dispatcher,
                    app=consumer.app,
                )
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

    def _tell(self, entry: Entry, position: int) -> None:
        request, passage = entry.request, entry.passage
        if request.ignore_result:
            return
        rate = min((level.limit.fill_rate for level in passage.path), default=inf)
        facts = {"position": position, "expected_start": self._host.time() + position * passage.cost / rate}
        try:
            # Another worker may have had it in the meantime. Celery's own way to write what a task does not.
            if request.task.backend.get_state(request.id) != states.PENDING:
                return
            request.task.backend.store_result(request.id, facts, PARKED, request=request._context)  # noqa: SLF001
        except Exception:
            logger.exception("that %s is parked could not be stored", request.id)


def _returning(request_class: Any) -> Any:
    """Return *request_class* for tasks that no broker delivers again when Celery cancels them."""

    class ParkedRequest(request_class):  # type: ignore[misc]
        def on_failure(self, *args: Any, **options: Any) -> Any:
            result = super().on_failure(*args, **options)
            if self._already_cancelled and not self.acknowledged:
                self.reject(requeue=True)
            return result

    return ParkedRequest


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
