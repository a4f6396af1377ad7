"""Parking on a Celery worker: a request becomes a parked message, a dispatched task becomes a request again."""

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
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import check_cost
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.messages import codec as parcel
from bucketflow_celery.scheduling.model import DispatchedTask, Lane, ParkedMessage
from bucketflow_celery.worker.celery_worker import CeleryWorker

__all__ = ["PARKED", "CeleryParkingWorker", "can_be_parked"]

logger = logging.getLogger(__name__)

#: The state of a parked task's result.
PARKED = "PARKED"

#: What can be wrong with a message that nobody will ever be able to read.
_UNREADABLE = (ValueError, KeyError, ContentDisallowed, InvalidTaskError)


def can_be_parked(worker: CeleryWorker | None, request: Any, queue: str) -> bool:
    """Return whether the message of *request* can wait outside of its *queue*, and come back to it."""
    if worker is None or not parcel.is_complete(request.message):
        return False
    return worker.is_from(request, queue) and not worker.is_broadcast(queue)


class CeleryParkingWorker:
    """
    Implements :class:`bucketflow_celery.parking.interfaces.ParkingWorker` on one connection to the broker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        worker: The worker, as the gate sees it.
        call_soon: Runs a callback in the worker's own loop; called from any thread.
    """

    def __init__(self, consumer: Any, worker: CeleryWorker, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._consumer = consumer
        self._worker = worker
        self._throttle = consumer.app.bucketflow
        self._highest_first = consumer.connection.transport.driver_type == "amqp"
        self._classes: dict[str, Any] = {}
        self.call_soon = call_soon
        self.is_revoked_or_expired = worker.is_revoked_or_expired
        self.start = worker.start
        self.monotonic = worker.monotonic

    def queues(self) -> Sequence[str]:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return list(self._consumer.app.amqp.queues.consume_from)

    def is_fresh(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return parcel.is_fresh(task.request.message)

    def is_redelivered(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return parcel.is_redelivered(task.request.message)

    def parcel(self, task: PendingTask, *, again: bool) -> ParkedMessage | None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        request, policy = task.request, task.policy
        message = request.message
        try:
            return ParkedMessage(
                parcel.uid_of(message, task.queue, os.urandom(8) if again else b""),
                Lane(
                    policy.tenant or "", request.task.name, parcel.rank_of(message, highest_first=self._highest_first)
                ),
                parcel.pack(message, since=task.first_refused_at),
                policy.cost,
                _max_wait_us(task),
                redelivered=parcel.is_redelivered(message),
            )
        except (TypeError, ValueError) as error:
            logger.warning("%s stays in the worker, it cannot be parked: %s", request.id, error)
            return None

    def parked(self, task: PendingTask, position: int) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        if position > 0 and self._throttle.settings.parked_state:
            self._tell(task, position)
        self._worker.acknowledge(task.request)

    def receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> PendingTask | None:
        """
        See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`.

        As Celery does, it drops what nobody can read.
        """
        owned = dispatched.owned
        try:
            message, facts = parcel.unpack(
                dispatched.message, accept=self._consumer.task_consumer.accept, redelivered=owned.item.redelivered
            )
            request = self._request(message, on_end)
        except _UNREADABLE:
            logger.critical(
                "a parked task of %s cannot be read: %r", owned.lane.task, dispatched.message, exc_info=True
            )
            return None
        task_reserved(request)
        return PendingTask(request, owned.queue, ThrottlePolicy(()), self.monotonic(), facts.get("since"))

    def give_up(self, task: PendingTask) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        request = task.request
        if self.is_revoked_or_expired(task):
            return
        try:
            policy = self._throttle.active_limits.resolve(
                request.task, request.request_dict, request.args, request.kwargs, task.queue
            )
            check_cost(policy.path, policy.cost)
        except BucketflowError as error:
            self._worker.fail(request, error)
            return
        waited = 0.0 if task.first_refused_at is None else self._worker.time() - task.first_refused_at
        if policy.max_wait is None or (request.expires is not None and waited < policy.max_wait):
            # The store's clock is a little ahead of this worker's.
            self._expire(request)
            return
        level = policy.path[-1].name if policy.path else "queue"
        self._worker.fail(request, ThrottleTimeout(level, waited, policy.max_wait))

    def _expire(self, request: Any) -> None:
        try:
            # Celery's own way to say so.
            request._announce_revoked("expired", False, None, True)  # noqa: FBT003, SLF001
        except Exception:
            logger.exception("the end of %s could not be stored", request.id)

    def is_settled(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return bool(task.request.acknowledged)

    def request_scale_up(self, more: bool) -> None:  # noqa: FBT001
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
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

    def _tell(self, task: PendingTask, position: int) -> None:
        request, policy = task.request, task.policy
        if request.ignore_result:
            return
        rate = min((level.limit.fill_rate for level in policy.path), default=inf)
        facts = {"position": position, "expected_start": self._worker.time() + position * policy.cost / rate}
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


def _max_wait_us(task: PendingTask) -> int:
    """Return the µs after which the task need not be started any more; 0: never."""
    now = datetime.now(timezone.utc)
    ends = []
    if task.request.expires is not None:
        ends.append((task.request.expires - now).total_seconds())
    if task.policy.max_wait is not None:
        since = task.first_refused_at if task.first_refused_at is not None else now.timestamp()
        ends.append(task.policy.max_wait - (now.timestamp() - since))
    return max(1, round(min(ends) * SECOND)) if ends else 0
