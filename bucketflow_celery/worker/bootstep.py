"""The bootstep that puts admission between Celery's receiving a task and its starting it."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps, signals
from celery.utils.quorum_queues import detect_quorum_queues

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.local_limits import LocalLimits
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.stats import no_waiting_tasks
from bucketflow_celery.store.active_limits import VERSION_CHECK_INTERVAL
from bucketflow_celery.store.calls import CallRunner, WorkerContext
from bucketflow_celery.worker.celery_worker import CeleryWorker
from bucketflow_celery.worker.event_loop import LoopWaker, timer_of
from bucketflow_celery.worker.events import ReceivedEvents
from bucketflow_celery.worker.failures import FailureService
from bucketflow_celery.worker.held_requests import HeldRequests
from bucketflow_celery.worker.parking_service import ParkingService
from bucketflow_celery.worker.parking_worker import CeleryParkingWorker
from bucketflow_celery.worker.pause_watch import PauseWatch
from bucketflow_celery.worker.pool_flush import PoolFlush
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.redis_event_loop import runner_for, warn_of_few_connections
from bucketflow_celery.worker.revocation import RevocationHandler, RevocationWatch
from bucketflow_celery.worker.slots import slots_of
from bucketflow_celery.worker.table_check import TableCheck
from bucketflow_celery.worker.wait_limits import wait_limits_of
from bucketflow_celery.worker.waiting_tasks import WaitingTasks

__all__ = ["ThrottleStep"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Seconds for which a worker that shuts down waits for errbacks and hooks of failed tasks.
HOOKS_TIMEOUT = 10.0


class ThrottleStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """
    Wraps ``Consumer.on_task_request``. Celery passes every request to it, new or with an ETA that has passed.

    Every step is constructed before ``Tasks.start`` builds the strategies that capture that attribute.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)
    label = "Throttle"

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._throttle = consumer.app.bucketflow
        self._waker = LoopWaker(timer_of(consumer))
        self._slots = slots_of(consumer.controller, self._waker.call_soon, self._waker.timer.call_after)
        self._pool_flush = PoolFlush(consumer.pool)
        self._failures = FailureService(self._waker.call_soon)
        self._held_requests = HeldRequests(consumer.controller)
        self._worker: CeleryWorker | None = None
        self._admission: AdmissionController | None = None
        self._parking: ParkingService | None = None
        self._revocations: RevocationWatch | None = None
        self._pauses: PauseWatch | None = None
        self._table_check: TableCheck | None = None
        self._local: LocalLimits = LocalLimits(self._throttle.settings)
        consumer.on_task_request = self._on_request
        ReceivedEvents(consumer)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        signals.task_received.connect(self._on_received)
        RevocationHandler(self._throttle).connect()
        if self._throttle.location is not None:
            self._throttle.location.announce()  # not in the signal worker_init, when logging is not set up
        warn_of_few_connections(self._throttle.store)

    def start(self, consumer: Any) -> None:
        """Start admission, on a new connection to the broker."""
        self._slots.forget()
        self._pool_flush.connect()
        self._held_requests.connect(consumer)
        throttle = self._throttle
        throttle.active_limits.is_followed = True
        self._refresh_limits()
        context = WorkerContext(throttle.settings, throttle.store, throttle.active_limits, throttle.counters)
        if self._parking is None and (throttle.active_limits.parks or self._has_parked_tasks(consumer)):
            self._parking = ParkingService(context, consumer.hostname)
        quorum, _ = detect_quorum_queues(consumer.app, consumer.connection.transport.driver_type)
        republisher = Republisher(consumer.app, delayed=quorum)
        window = PrefetchWindow(consumer, self._held_requests, throttle.settings.hold_limit)
        ports = (self._slots, window, republisher, self._waker, self._failures)
        limits = wait_limits_of(consumer, throttle.settings)
        if self._table_check is None:
            settings, call_after = throttle.settings, self._waker.timer.call_after
            self._table_check = TableCheck(throttle.store, settings.limits, settings.namespace, call_after)
            self._table_check.on_count = self._local.record_workers
        self._table_check.start(self._runner(consumer))
        self._revocations = RevocationWatch(consumer, self._waker.timer.call_after)
        self._revocations.start()
        if self._parking is None:
            self._worker = CeleryWorker(consumer, *ports)
            self._admission = AdmissionController(self._worker, context, self._runner(consumer), limits, self._local)
        else:
            self._worker = worker = CeleryParkingWorker(consumer, *ports)
            self._admission = AdmissionController(worker, context, self._runner(consumer), limits, self._local)
            self._admission.open(self._parking.open(worker, self._admission, self._runner(consumer)))
        throttle.counters.waiting_by_level = WaitingTasks(consumer, self._admission).by_level
        self._pauses = PauseWatch(
            consumer,
            lambda: throttle.active_limits.table.paused,
            self._admission.run,
            self._waker.timer.call_after,
        )
        self._pauses.start()
        self._check_limits(self._admission)

    def stop(self, consumer: Any) -> None:
        """
        Stop admission and leave the waiting tasks to the broker.

        After a lost connection there is nothing to requeue: the broker delivers unacknowledged messages again.
        """
        self._throttle.active_limits.is_followed = False
        self._throttle.counters.waiting_by_level = no_waiting_tasks
        admission, self._admission = self._admission, None
        worker, self._worker = self._worker, None
        for part in (self._revocations, self._pauses, self._table_check):
            if part is not None:
                part.close()
        if admission is None or worker is None:
            return
        waiting = admission.close()
        if self._parking is not None:
            waiting += self._parking.close()
        connection = consumer.connection  # Celery before 5.7 keeps one that is lost
        worker.close(waiting, connected=connection is not None and connection.connected)

    def shutdown(self, _consumer: Any) -> None:
        """End failed tasks, return the parked ones that this worker still has, close the store. The pool has ended."""
        self._failures.close(HOOKS_TIMEOUT)
        if self._parking is not None:
            self._parking.release()
        signals.worker_shutting_down.disconnect(self._on_shutting_down)
        signals.task_received.disconnect(self._on_received)
        self._throttle.close()

    def register_with_event_loop(self, _consumer: Any, hub: Any) -> None:
        """Let the pool's threads wake the loop."""
        self._waker.register(hub)

    def info(self, _consumer: Any) -> dict[str, Any]:
        """Return what ``celery inspect stats`` shows of the throttle."""
        return {"throttle": self._throttle.stats()}

    def _on_request(self, request: Any) -> None:
        admission, worker = self._admission, self._worker
        if admission is not None and worker is not None:
            admission.submit(worker.pending_task(request))

    def _on_received(self, sender: Any, request: Any, **_: Any) -> None:
        # Celery keeps a deferred task until its ETA, and passes it to _on_request only then.
        admission, worker = self._admission, self._worker
        if admission is not None and worker is not None and sender.on_task_request == self._on_request:
            ticket = Ticket.read(request.request_dict.get(HEADER))
            if ticket.seen_at is not None and worker.is_purged(request):
                self._waker.call_soon(admission.actions.end_purged)  # once Celery waits for its ETA
            elif ticket.reservations:
                admission.priorities.record(worker.rank_of(request), ticket.reservations)

    def _check_limits(self, admission: AdmissionController) -> None:
        # A worker that only waits for ETAs makes no calls, which would tell that tasks were purged.
        if self._admission is admission:
            admission.run()
            self._waker.timer.call_after(VERSION_CHECK_INTERVAL, lambda: self._check_limits(admission))

    def _runner(self, consumer: Any) -> CallRunner:
        return runner_for(self._throttle.store, consumer.hub, self._throttle.settings.timeout)

    def _has_parked_tasks(self, consumer: Any) -> bool:
        # They were parked by workers with another configuration, and must not wait for ever.
        try:
            parked: list[str] = self._throttle.store.backlogs.queues()
        except StoreUnavailable:
            return False
        return not set(parked).isdisjoint(consumer.app.amqp.queues.consume_from)

    def _refresh_limits(self) -> None:
        # Before the first task: the fleet's limits may refuse it where the configured ones do not.
        try:
            self._throttle.active_limits.refresh()
        except StoreUnavailable as error:
            logger.warning("fleet limits unavailable, starting with the configured ones: %s", error)

    def _on_shutting_down(self, **_: Any) -> None:
        # Runs inside a signal handler: no I/O, no lock. The waiting tasks are requeued when the step stops.
        if self._admission is not None:
            self._admission.stop()
