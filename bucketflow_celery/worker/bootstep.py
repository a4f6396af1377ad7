"""The bootstep that puts admission between Celery's receiving a task and its starting it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from celery import bootsteps, signals
from celery.utils.quorum_queues import detect_quorum_queues

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission.controller import AdmissionController, HoldLimits
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.store.calls import Asker
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.worker.celery_worker import CeleryWorker
from bucketflow_celery.worker.event_loop import LoopWaker, timer_of
from bucketflow_celery.worker.parking_service import ParkingService
from bucketflow_celery.worker.parking_worker import CeleryParkingWorker, can_be_parked
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.redis_event_loop import asker_for
from bucketflow_celery.worker.revocation import RevocationHandler
from bucketflow_celery.worker.slots import slots_of

__all__ = ["ThrottleStep"]

logger = logging.getLogger(__name__)


class ThrottleStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """
    Wraps ``Consumer.on_task_request``, through which every request goes, fresh or due, whatever the pool.

    Every step is made before ``Tasks.start`` builds the strategies that capture that attribute.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Throttle"

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._throttle = consumer.app.bucketflow
        self._timer = timer_of(consumer)
        self._waker = LoopWaker(self._timer)
        self._slots = slots_of(consumer.controller, self._waker.call_soon)
        self._admission: AdmissionController | None = None
        self._worker: CeleryWorker | None = None
        self._asker: Asker | None = None
        self._parking: ParkingService | None = None
        consumer.on_task_request = self._on_request
        self._revocation = RevocationHandler(self._throttle)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        signals.task_revoked.connect(self._revocation.on_revoked)

    def start(self, consumer: Any) -> None:
        """Open the controller, on a new connection to the broker."""
        self._slots.forget()
        settings = self._throttle.settings
        quorum, _ = detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)
        republisher = Republisher(consumer.app, delayed=quorum)
        self._worker = CeleryWorker(consumer, self._slots, PrefetchWindow(consumer), republisher, self._timer)
        self._asker = asker_for(self._throttle.store, self._throttle.active_limits, consumer.hub, settings.timeout)
        self._learn_limits()
        self._admission = AdmissionController(
            self._worker,
            asker=self._asker,
            resolve=self._resolve,
            breaker=CircuitBreaker(settings.on_store_error),
            hold_limits=_hold_limits(consumer, settings.max_hold, settings.max_countdown),
            stats=self._throttle.counters,
        )
        self._open_room(consumer)

    def stop(self, consumer: Any) -> None:
        """
        Close the controller and leave to the broker what was waiting.

        After a lost connection there is nothing to give back: the broker delivers again what was not acknowledged.
        """
        controller, self._admission = self._admission, None
        worker, self._worker = self._worker, None
        if controller is None or worker is None:
            return
        waiting = controller.close()
        if self._parking is not None:
            waiting += self._parking.close()
        connection = consumer.connection  # Celery before 5.7 keeps one that is lost
        worker.close(waiting, connected=connection is not None and connection.connected)
        if self._asker is not None:
            self._asker.close()

    def shutdown(self, _consumer: Any) -> None:
        """Give back the parked tasks that this worker still has, and close the store. The pool has ended."""
        if self._parking is not None:
            self._parking.leave()
        self._throttle.close()

    def register_with_event_loop(self, _consumer: Any, hub: Any) -> None:
        """Let the pool's threads wake the loop."""
        self._waker.register(hub)

    def info(self, _consumer: Any) -> dict[str, Any]:
        """Return what ``celery inspect stats`` shows of it."""
        return {"throttle": self._throttle.stats()}

    def _on_request(self, request: Any) -> None:
        controller, worker = self._admission, self._worker
        if controller is not None and worker is not None:
            controller.submit(request, worker.queue_of(request), Ticket.read(request.request_dict.get(HEADER)))

    def _open_room(self, consumer: Any) -> None:
        if self._parking is None and (self._throttle.active_limits.parks or self._is_something_parked(consumer)):
            self._parking = ParkingService(self._throttle, consumer.hostname)
        if self._parking is not None and self._admission is not None and self._worker is not None:
            parking = CeleryParkingWorker(consumer, self._worker, self._waker.call_soon)
            self._admission.open(self._parking.open(parking, self._admission, consumer.hub))

    def _is_something_parked(self, consumer: Any) -> bool:
        # By workers that were configured otherwise: it must not wait for ever.
        try:
            parked: list[str] = self._throttle.store.backlogs.queues()
        except StoreUnavailable:
            return False
        return not set(parked).isdisjoint(consumer.app.amqp.queues.consume_from)

    def _learn_limits(self) -> None:
        # Before the first task, which may be one that they limit and the configured ones do not.
        try:
            self._throttle.active_limits.refresh()
        except StoreUnavailable as error:
            logger.warning("the fleet's limits are not known yet, starting with the configured ones: %s", error)

    def _resolve(self, request: Any, queue: str) -> ThrottlePolicy:
        headers = request.request_dict
        policy: ThrottlePolicy = self._throttle.active_limits.resolve(
            request.task, headers, request.args, request.kwargs, queue
        )
        if policy.parks and not can_be_parked(self._worker, request, queue):
            return replace(policy, on_limit="hold")
        return policy

    def _on_shutting_down(self, **_: Any) -> None:
        # Runs inside a signal handler: no I/O, no lock. What waits is given back when the step stops.
        if self._admission is not None:
            self._admission.stop()


def _hold_limits(consumer: Any, max_hold: float, max_countdown: float) -> HoldLimits:
    # A message the broker does not see acknowledged within its visibility timeout is delivered a second time.
    visibility = getattr(consumer.connection.default_channel, "visibility_timeout", None) or float("inf")
    return HoldLimits(min(max_hold, visibility / 4), min(max_countdown, visibility / 2))
