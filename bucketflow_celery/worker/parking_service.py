"""Parking of one worker process: connections to the broker come and go, its lease and in-flight tasks stay."""

from __future__ import annotations

import logging

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.controller import ParkingController
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.interfaces import ParkingWorker
from bucketflow_celery.parking.worker_lease import WorkerLease
from bucketflow_celery.store.calls import CallRunner, WorkerContext

__all__ = ["ParkingService"]

logger = logging.getLogger("bucketflow_celery.parking")


class ParkingService:
    """
    Owns the lease of one worker process, and its parking controller while it is connected.

    Args:
        context: What the components of the worker share.
        node: The worker's name.
    """

    def __init__(self, context: WorkerContext, node: str) -> None:
        self._context = context
        self._in_flight_tasks = InFlightTasks(self._on_end)
        self._lease = WorkerLease(context, node, self._in_flight_tasks, self._on_notify)
        self._controller: ParkingController | None = None

    def open(self, worker: ParkingWorker, admission: AdmissionController, runner: CallRunner) -> ParkingController:
        """Return a parking controller for a new connection to the broker."""
        self._lease.stranded.queues = worker.queues
        self._controller = ParkingController(worker, admission, self._context, runner, self._lease)
        self._lease.start()
        return self._controller

    def close(self) -> list[PendingTask]:
        """Close the controller and return the tasks that are not parked: the caller leaves them to the broker."""
        controller, self._controller = self._controller, None
        waiting = [] if controller is None else controller.close()
        self._report()
        return waiting

    def release(self) -> None:
        """Return all tasks that this worker still has to their lanes: its pool has ended."""
        self._report()
        self._lease.release()

    def _on_notify(self, queue: str) -> None:
        controller = self._controller
        if controller is not None:
            controller.notify(queue)

    def _on_end(self) -> None:
        controller = self._controller
        if controller is not None:
            controller.wake()
        else:
            self._report()

    def _report(self) -> None:
        """Report the outcomes of tasks without the worker's loop."""
        for queue, settlement in self._in_flight_tasks.settlements():
            try:
                self._context.store.backlogs.settle(queue, settlement).run()
            except StoreUnavailable as error:
                logger.warning("outcome of parked tasks not reported, trying again later: %s", error)
                self._in_flight_tasks.confirm(queue, settlement, delivered=False)
            else:
                self._in_flight_tasks.confirm(queue, settlement, delivered=True)
