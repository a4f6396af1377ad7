"""Revoked tasks end at once, and their reservations are cancelled."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any

from celery import signals
from celery.utils.functional import maybe_list
from celery.worker import state

from bucketflow.errors import BucketflowError, StoreUnavailable
from bucketflow_celery.messages.origin import queue_of
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.worker.deferred_requests import deferred_requests

__all__ = ["RevocationHandler", "RevocationWatch"]

logger = logging.getLogger("bucketflow_celery.worker")


#: Seconds between two checks for new revocations.
CHECK_INTERVAL = 1.0


class RevocationWatch:
    """
    Ends the revoked tasks that a worker keeps until their ETA. Celery itself would not look before.

    Args:
        consumer: Celery's ``Consumer``, connected.
        call_after: Runs a callback in the worker's loop after a number of seconds.
    """

    def __init__(self, consumer: Any, call_after: Callable[[float, Callable[[], None]], Any]) -> None:
        self._consumer = consumer
        self._call_after = call_after
        self._seen = _revocations()
        self._closed = False

    def start(self) -> None:
        """Check from now on."""
        self._call_after(CHECK_INTERVAL, self._check)

    def close(self) -> None:
        """Check no more."""
        self._closed = True

    def _check(self) -> None:
        if self._closed:
            return
        try:
            found = _revocations()
            if found != self._seen:
                self._seen = found
                self._end_revoked()
        finally:
            self.start()

    def _end_revoked(self) -> None:
        for deferred in deferred_requests(self._consumer):
            try:
                is_revoked = deferred.request.revoked()
            except Exception:  # Celery tries again at its ETA
                logger.exception("end of task cannot be stored: id=%s", deferred.request.id)
                continue
            if is_revoked:
                deferred.entry.cancel()
                self._consumer.qos.decrement_eventually()


def _revocations() -> tuple[int, float, int]:
    """Return what differs after each revocation: how many are known, the time of the latest, and the stamps."""
    known = state.revoked
    latest = next(reversed(known._data.values()), (0.0,))[0]  # noqa: SLF001 - no public view tells its time
    return len(known), latest, sum(len(maybe_list(values)) for values in state.revoked_stamps.values())


#: The handler of each throttle. It ends with the throttle, and Celery then disconnects it.
_handlers: weakref.WeakKeyDictionary[Any, RevocationHandler] = weakref.WeakKeyDictionary()


class RevocationHandler:
    """
    Cancels the reservations of a task that was revoked: the next task that is refused reserves an earlier time.

    Args:
        throttle: Of the worker's app.
    """

    def __init__(self, throttle: Any) -> None:
        self._throttle = weakref.ref(throttle)
        self._breaker = CircuitBreaker()

    def connect(self) -> None:
        """Connect to Celery's signal, once per throttle: two workers in one process must not both cancel."""
        throttle = self._throttle()
        if throttle is not None and _handlers.setdefault(throttle, self) is self:
            signals.task_revoked.connect(self.on_revoked, dispatch_uid=id(self))

    def on_revoked(self, sender: Any, request: Any, **_: Any) -> None:
        """Handle Celery's signal ``task_revoked``."""
        throttle = self._throttle()
        if throttle is None:
            return
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
