"""Cancellation of the reservations of revoked tasks."""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from celery import signals

from bucketflow.errors import BucketflowError, StoreUnavailable
from bucketflow_celery.messages.origin import queue_of
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.store.circuit_breaker import CircuitBreaker

__all__ = ["RevocationHandler"]

logger = logging.getLogger("bucketflow_celery.worker")


class RevocationHandler:
    """
    Cancels the reservations of a task that was revoked, so that the tasks behind it move up.

    Args:
        throttle: Of the worker's app.
    """

    def __init__(self, throttle: Any) -> None:
        self._throttle = throttle
        self._breaker = CircuitBreaker()

    def connect(self) -> None:
        """Connect to Celery's signal, once per throttle: two workers in one process must not both cancel."""
        signals.task_revoked.connect(self.on_revoked, weak=False, dispatch_uid=f"bucketflow-{id(self._throttle)}")

    def on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        """Handle Celery's signal ``task_revoked``."""
        throttle = self._throttle
        ticket = Ticket.read(request.get(HEADER))
        # While the store is away a call would block the worker's loop, once for each of many revoked tasks.
        if not ticket.reservations or sender.app is not throttle.app or self._breaker.open_until > monotonic():
            return
        queue = queue_of(request.delivery_info or {}, {}, throttle.app.amqp.queues.consume_from)
        try:
            policy = throttle.active_limits.resolve(sender, request.__dict__, request.args, request.kwargs, queue)
            throttle.store.cancel_reservation(AdmissionRequest(policy.path, policy.cost, ticket.at(policy.path)))
            self._breaker.record_success()
        except BucketflowError as error:
            if isinstance(error, StoreUnavailable):
                self._breaker.record_failure(monotonic())
            logger.warning("reservation of revoked task not cancelled: id=%s error=%s", request.id, error)
