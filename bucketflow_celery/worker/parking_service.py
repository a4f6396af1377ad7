"""A worker's waiting room over its whole life: connections to the broker come and go, lease and in_flight stay."""

from __future__ import annotations

import logging
from typing import Any

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.controller import Begin, ParkingController
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.interfaces import Desk, ParkingWorker
from bucketflow_celery.parking.worker_lease import Lease
from bucketflow_celery.store.calls import begin_now
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.worker.redis_event_loop import EventLoopRunner, begin_from

__all__ = ["ParkingService"]

logger = logging.getLogger(__name__)


class ParkingService:
    """
    Opens and closes the waiting room of one worker.

    Args:
        throttle: Of the worker's app.
        node: The worker's name.
    """

    def __init__(self, throttle: Any, node: str) -> None:
        self._throttle = throttle
        self._store = throttle.store
        self._in_flight_tasks = InFlightTasks(self._on_news)
        self._lease = Lease(
            self._store.backlogs,
            node,
            throttle.settings.lease,
            on_call=self._on_call,
            is_known=self._in_flight_tasks.has,
        )
        self._runner: EventLoopRunner | None = None
        self._room: ParkingController | None = None

    def open(self, worker: ParkingWorker, desk: Desk, hub: Any) -> ParkingController:
        """Return a waiting room for a new connection to the broker; *hub* is the worker's event loop, if it has one."""
        begin: Begin = begin_now
        if hub is not None and isinstance(self._store, RedisStore):
            self._runner = EventLoopRunner(self._store.runner, hub, self._throttle.settings.timeout)
            begin = begin_from(self._runner)
        self._room = ParkingController(
            worker,
            desk,
            store=self._store.backlogs,
            begin=begin,
            active_limits=self._throttle.active_limits,
            tenure=self._lease,
            in_flight=self._in_flight_tasks,
            limit=self._throttle.settings.backlog_limit,
            stats=self._throttle.counters,
        )
        self._lease.start()
        return self._room

    def close(self) -> list[PendingTask]:
        """Close the room and return the tasks that are not parked: the caller leaves them to the broker."""
        room, self._room = self._room, None
        waiting = [] if room is None else room.close()
        if self._runner is not None:
            self._runner.close()
            self._runner = None
        self._tell()
        return waiting

    def leave(self) -> None:
        """Give back all that this worker still has: its pool has ended."""
        self._tell()
        self._lease.leave()

    def _on_call(self, queue: str) -> None:
        room = self._room
        if room is not None:
            room.call(queue)

    def _on_news(self) -> None:
        room = self._room
        if room is not None:
            room.wake()
        else:
            self._tell()

    def _tell(self) -> None:
        """Tell the store what has ended, without the worker's loop."""
        for queue, settlement in self._in_flight_tasks.settlements():
            try:
                self._store.backlogs.settle(queue, settlement).run()
            except StoreUnavailable as error:
                logger.warning("the end of parked tasks is told later: %s", error)
                self._in_flight_tasks.confirm(queue, settlement, delivered=False)
            else:
                self._in_flight_tasks.confirm(queue, settlement, delivered=True)
