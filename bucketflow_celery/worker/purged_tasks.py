"""Ends purged tasks that a worker keeps until their ETA, and cancels the reservations of all purged tasks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any

from celery.worker import state

from bucketflow.errors import BucketflowError, StoreUnavailable
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.messages.origin import queue_of
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.worker.deferred_requests import deferred_requests

__all__ = ["PurgedTasks"]

logger = logging.getLogger("bucketflow_celery.worker")


class PurgedTasks:
    """
    The purged tasks of a worker.

    Args:
        consumer: Celery's ``Consumer``, connected.
        acknowledge: Acknowledges the message of a request.
    """

    def __init__(self, consumer: Any, acknowledge: Callable[[Any], None]) -> None:
        self._consumer = consumer
        self._acknowledge = acknowledge
        self._cancelled: dict[str, tuple[Level, float, int]] = {}  # by level: its tasks' cost, and latest reservation
        self._breaker = CircuitBreaker()

    def _purged_policy(self, request: Any) -> ThrottlePolicy | None:
        """Return what limits *request*, a deferred task that was purged; ``None``: it was not."""
        header = request.request_dict.get(HEADER)
        seen_at = None if header is None else Ticket.read(header).seen_at
        app = self._consumer.app
        limits = app.bucketflow.active_limits
        if seen_at is None or seen_at >= limits.purges.latest:
            return None
        queue = queue_of(request.delivery_info or {}, {}, app.amqp.queues.consume_from)
        try:
            policy: ThrottlePolicy = limits.resolve(
                request.task, request.request_dict, request.args, request.kwargs, queue
            )
        except BucketflowError:
            return None  # it fails when it is due
        return policy if policy.purged_at > seen_at else None

    def is_purged(self, request: Any) -> bool:
        """Return whether *request* waits for its ETA and was purged."""
        return self._purged_policy(request) is not None

    def drop(self, task: PendingTask) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Worker`."""
        request = task.request
        self._cancel(task.policy, task.reservations)
        if getattr(request, "is_parked", False):  # its message has no channel
            state.task_ready(request)
            request.acknowledge()
        else:
            self._acknowledge(request)

    def end(self, reservations: Sequence[AdmissionRequest]) -> int:
        """See :meth:`~bucketflow_celery.admission.interfaces.Worker.end_purged`."""
        for request in reservations:
            self._cancelled[request.path[0].key] = request.path[0], request.cost, request.reservations[0]
        ended = self._end_waiting()
        self._flush()
        return ended

    def _end_waiting(self) -> int:
        ended = 0
        for deferred in deferred_requests(self._consumer):
            request = deferred.request
            policy = None if deferred.is_nearly_due else self._purged_policy(request)
            if policy is not None:
                deferred.entry.cancel()
                self._consumer.qos.decrement_eventually()
                self._acknowledge(request)
                self._cancel(policy, Ticket.read(request.request_dict[HEADER]).reservations)
                ended += 1
        return ended

    def _cancel(self, policy: ThrottlePolicy, reservations: Mapping[str, int]) -> None:
        """Cancel *reservations* of a task with the next :meth:`_flush`."""
        now = self._consumer.app.bucketflow.active_limits.store_time(monotonic()) or 0
        level = max(policy.path, key=lambda level: reservations.get(level.key, 0), default=None)
        reservation = 0 if level is None else reservations.get(level.key, 0)
        if level is not None and reservation > now:
            _, cost, latest = self._cancelled.get(level.key, (level, 0.0, 0))
            self._cancelled[level.key] = level, cost + policy.cost, max(latest, reservation)

    def _flush(self) -> None:
        """Cancel the reservations, with one call for each level."""
        cancelled, self._cancelled = self._cancelled, {}
        for level, cost, latest in cancelled.values():
            if self._breaker.open_until > monotonic():
                return  # a call would block the worker's loop; unused reservations are dropped in time
            try:
                self._consumer.app.bucketflow.store.cancel_reservation(AdmissionRequest((level,), cost, (latest,)))
                self._breaker.record_success()
            except StoreUnavailable as error:
                self._breaker.record_failure(monotonic())
                logger.warning("reservations of purged tasks not cancelled: key=%s error=%s", level.key, error)
