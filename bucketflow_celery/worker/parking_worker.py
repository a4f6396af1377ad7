"""The worker port of parking: a request becomes a parked message, and a dispatched task becomes a request again."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
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
from bucketflow_celery.errors import ThrottleTimeout
from bucketflow_celery.messages import codec
from bucketflow_celery.scheduling.model import DispatchedTask, Lane, ParkedMessage
from bucketflow_celery.worker.celery_worker import CeleryWorker

__all__ = ["PARKED", "CeleryParkingWorker"]

logger = logging.getLogger("bucketflow_celery.parking")

#: The state of a parked task's result.
PARKED = "PARKED"

#: What decoding a message raises that no worker can decode.
_UNREADABLE = (ValueError, KeyError, ContentDisallowed, InvalidTaskError)


class CeleryParkingWorker(CeleryWorker):
    """Implements :class:`bucketflow_celery.parking.interfaces.ParkingWorker`; see :class:`CeleryWorker`."""

    def __init__(self, consumer: Any, *ports: Any) -> None:
        super().__init__(consumer, *ports)
        self._throttle = consumer.app.bucketflow
        self._classes: dict[str, Any] = {}

    def queues(self) -> Sequence[str]:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return list(self._consumer.app.amqp.queues.consume_from)

    def encode(self, task: PendingTask, *, is_duplicate: bool) -> ParkedMessage | None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        request, policy, message = task.request, task.policy, task.request.message
        try:
            uid = codec.uid_of(message, task.queue, os.urandom(8) if is_duplicate else b"")
            if task.seen_at is None:
                task.seen_at = self._throttle.active_limits.store_time(task.received_at)
            packed = codec.pack(message, since=task.waiting_since, seen=task.seen_at)
        except (TypeError, ValueError) as error:
            logger.warning("task cannot be parked, it stays held: id=%s error=%s", request.id, error)
            return None
        lane = Lane(policy.tenant or "", policy.task, task.rank)
        return ParkedMessage(uid, lane, packed, policy.cost, _max_wait_us(task), redelivered=bool(task.redelivered))

    def on_parked(self, task: PendingTask, position: int) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        if position > 0 and self._throttle.settings.parked_state:
            self._store_state(task, position)
        self.acknowledge(task.request)

    def receive(self, dispatched: DispatchedTask, on_end: Callable[[bool], None]) -> PendingTask | None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`. As in Celery, it is dropped."""
        leased = dispatched.owned
        try:
            message, facts = codec.unpack(
                dispatched.message, accept=self._consumer.task_consumer.accept, redelivered=leased.item.redelivered
            )
            request = self._request(message, on_end)
        except _UNREADABLE:
            logger.critical(
                "parked task cannot be decoded, it is dropped: task=%s message=%r",
                leased.lane.task,
                dispatched.message,
                exc_info=True,
            )
            return None
        task_reserved(request)
        return PendingTask(
            request,
            leased.queue,
            self.monotonic(),
            facts.get("since"),
            seen_at=facts.get("seen"),
            rank=leased.lane.rank,
        )

    def end_unstarted(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        if self.is_revoked_or_expired(task):
            return self.is_acknowledged(task)
        try:
            policy = task.policy = self.resolve(task)
            check_cost(policy.path, policy.cost, policy.calls)
        except BucketflowError as error:
            return self._fail_dispatched(task, error)
        waited = 0.0 if task.waiting_since is None else self.time() - task.waiting_since
        if policy.max_wait is None or (task.request.expires is not None and waited < policy.max_wait):
            self._expire(task.request)  # the store's clock is a little ahead of this worker's
            return self.is_acknowledged(task)
        level = policy.path[-1].name if policy.path else "queue"
        return self._fail_dispatched(task, ThrottleTimeout(level, waited, policy.max_wait))

    def is_acknowledged(self, task: PendingTask) -> bool:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        return bool(task.request.acknowledged)

    def request_scale_up(self) -> None:
        """See :class:`~bucketflow_celery.parking.interfaces.ParkingWorker`."""
        autoscaler = getattr(self._consumer.controller, "autoscaler", None)
        # The autoscaler counts received messages, never more than there are slots here: parked tasks wait elsewhere.
        if autoscaler is not None and autoscaler.processes < autoscaler.max_concurrency:
            autoscaler.scale_up(1)

    def _fail_dispatched(self, task: PendingTask, error: BucketflowError) -> bool:
        if not self._failures.is_ready:
            return False
        self._throttle.counters.failed += 1
        self.fail(task, error)
        return True

    def _expire(self, request: Any) -> None:
        try:
            request._announce_revoked("expired", False, None, True)  # noqa: FBT003, SLF001 - as Celery's own request does
        except Exception:
            logger.exception("end of task cannot be stored: id=%s", request.id)

    def _request(self, message: Any, on_end: Callable[[bool], None]) -> Any:
        # Not through the task's strategy: that would announce its receipt a second time, and wait for its ETA again.
        consumer = self._consumer
        task = consumer.app.tasks[message.headers["task"]]

        def on_ack(_logger: Any, _errors: Any) -> None:
            on_end(False)  # noqa: FBT003 - it does not return

        def on_reject(_logger: Any, _errors: Any, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's
            on_end(requeue)

        return self._request_class(task)(
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

    def _request_class(self, task: Any) -> Any:
        found = self._classes.get(task.name)
        if found is None:
            consumer = self._consumer
            found = self._classes[task.name] = _returning(
                create_request_cls(
                    symbol_by_name(task.Request),
                    task,
                    consumer.pool,
                    consumer.hostname,
                    consumer.event_dispatcher,
                    app=consumer.app,
                )
            )
        return found

    def _store_state(self, task: PendingTask, position: int) -> None:
        """Store the state ``PARKED`` as the task's result."""
        request, policy = task.request, task.policy
        if request.ignore_result:
            return
        rate = min((level.limit.fill_rate for level in policy.path), default=inf)
        facts = {"position": position, "expected_start": self.time() + position * policy.cost / rate}
        try:
            # Another worker may have started it meanwhile. As Celery itself writes what a task does not.
            if request.task.backend.get_state(request.id) != states.PENDING:
                return
            request.task.backend.store_result(request.id, facts, PARKED, request=request._context)  # noqa: SLF001
        except Exception:
            logger.exception("state PARKED cannot be stored: id=%s", request.id)


def _returning(request_class: Any) -> Any:
    """Return *request_class* for tasks that no broker delivers again when Celery cancels them."""

    class ParkedRequest(request_class):  # type: ignore[misc]
        is_parked = True

        def on_failure(self, *args: Any, **options: Any) -> Any:
            result = super().on_failure(*args, **options)
            if self._already_cancelled and not self.acknowledged:
                self.reject(requeue=True)
            return result

    return ParkedRequest


def _max_wait_us(task: PendingTask) -> int:
    """Return the µs until the task expires or exceeds its ``max_wait``; 0: never."""
    now = time.time()
    ends = []
    if task.expires_at is not None:
        ends.append(task.expires_at - now)
    if task.policy.max_wait is not None:
        since = task.waiting_since if task.waiting_since is not None else now
        ends.append(task.policy.max_wait - (now - since))
    return max(1, round(min(ends) * SECOND)) if ends else 0
