"""
Schedules this worker's calls to the backlogs: settle, park, dispatch. One call is in flight at a time.

Settlements go first; then parking and polling take turns. A worker polls for as many tasks as it has free slots: when
the store told it to, after a notification, or when a slot becomes free.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, TypeAlias

from bucketflow.errors import StoreFull, StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow_celery.admission.controller import AdmissionController
from bucketflow_celery.admission.overdue import SWEEP_INTERVAL
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.interfaces import ParkingWorker
from bucketflow_celery.parking.outbox import AckTracker, Outbox, ParkBatch, ParkedTenants
from bucketflow_celery.parking.poll_schedule import PollSchedule, QueuePolls
from bucketflow_celery.parking.receiver import RETRY_PAUSE, DispatchReceiver
from bucketflow_celery.parking.worker_lease import WorkerLease
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, Settlement
from bucketflow_celery.store.calls import CallRunner, StoreClient, WorkerContext
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.store.interfaces import LeaseLost, StaleLimits

__all__ = ["ParkingController"]

logger = logging.getLogger("bucketflow_celery.parking")

#: Most messages parked, or tasks requested, in one call.
MAX_BATCH = 64
#: About the most bytes parked in one call.
MAX_BATCH_BYTES = 1 << 20

_OnReply: TypeAlias = Callable[[Any], None]


class ParkingController:
    """
    Implements :class:`bucketflow_celery.admission.interfaces.Parking` on one connection to the broker.

    Args:
        worker: The worker.
        admission: Its admission controller.
        context: What the components of the worker share.
        runner: Runs calls to the store.
        lease: The worker's lease.
    """

    def __init__(
        self,
        worker: ParkingWorker,
        admission: AdmissionController,
        context: WorkerContext,
        runner: CallRunner,
        lease: WorkerLease,
    ) -> None:
        self._worker = worker
        self._admission = admission
        self._backlogs = context.store.backlogs
        self._limits = context.limits
        self._backlog_limit = context.settings.backlog_limit
        self._lease = lease
        self._in_flight_tasks = lease.in_flight_tasks
        # The context of each call is the function that acts on its reply.
        self._client: StoreClient[_OnReply] = StoreClient(logger, runner, context, admission.run, worker.monotonic)
        self._breaker = self._client.breaker
        self._full_breaker = CircuitBreaker()  # open while the store has no memory for more parked tasks
        self._schedule = PollSchedule()
        self._settlements: deque[tuple[str, Settlement]] = deque()
        self._acks = AckTracker()
        self._parked_tenants = ParkedTenants()
        self._outbox = Outbox(worker, admission, self._parked_tenants, self._acks, context.stats)
        self._receiver = DispatchReceiver(worker, lease, context.stats, context.limits)
        self._parked_last = self._is_parking = False
        self._reported: set[tuple[str, str]] = set()  # queue and task type that no live worker can run
        self._closed = False
        self._next_sweep = 0.0
        self.is_open = True
        self.reserved_slots = 0
        # Bound directly: admission calls these for every task.
        self.blocks = self._parked_tenants.blocks
        self.add = self._outbox.add

    def notify(self, queue: str) -> None:
        """Poll *queue*, or all of them, in the next round. Any thread may call."""
        self._schedule.notify(queue)
        self.wake()

    def wake(self) -> None:
        """Start a round of admission, in which parking works. Any thread may call."""
        self._worker.call_soon(self._admission.run)

    def next_work_at(self) -> float | None:
        """See :class:`~bucketflow_celery.admission.interfaces.Parking`."""
        if self._client.context is not None or self._closed:
            return None
        park_at = self._full_breaker.open_until or inf
        return max(self._breaker.open_until, min(park_at, self._schedule.next_poll_at()))

    def close(self) -> list[PendingTask]:
        """Stop, and return the tasks that are not known to be stored: the caller leaves them to the broker."""
        self._closed = True
        self._client.close()
        for queue, settlement in self._settlements:
            self._in_flight_tasks.confirm(queue, settlement, delivered=False)
        return self._outbox.tasks()

    def work(self, free: Callable[[], int]) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Parking`."""
        now = self._worker.monotonic()
        if self._schedule.update(self._worker.queues(), now):
            self._limits.is_stale = True
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_INTERVAL
            self._outbox.return_overdue()
        while self._client.context is None and not self._closed and self._breaker.open_until <= now:
            if not (self._settle() or self._park_or_poll(free())):
                return
            now = self._worker.monotonic()

    def on_reply(self) -> None:
        """See :class:`~bucketflow_celery.admission.interfaces.Parking`."""
        taken = self._client.take("parked tasks wait", tolerates_full=self._is_parking)
        if taken is not None:
            on_reply, reply = taken
            on_reply(reply)

    def _send(self, call: Any, on_reply: _OnReply) -> None:
        self._client.send(call, on_reply)
        self.on_reply()

    def _park_or_poll(self, free: int) -> bool:
        if self._parked_last:
            return self._poll(free) or self._park(free)
        return self._park(free) or self._poll(free)

    def _settle(self) -> bool:
        """Report the outcomes of dispatched tasks, and which messages the broker has forgotten."""
        self._settlements.extend(self._in_flight_tasks.settlements())
        now = self._worker.monotonic()
        if not self._settlements:
            due = self._acks.due(now)
            if due is None:
                return False
            self._settlements.append((due, Settlement(self._lease.worker)))
        queue, settlement = self._settlements[0]

        def on_reply(reply: Any) -> None:
            self._settlements.popleft()  # not earlier: if the controller is closed meanwhile it is reported again
            self._in_flight_tasks.confirm(queue, settlement, delivered=not isinstance(reply, StoreUnavailable))

        confirmed = self._acks.take(queue, now)
        self._send(self._backlogs.settle(queue, replace(settlement, confirmed=confirmed)), on_reply)
        return True

    def _park(self, free: int) -> bool:
        """Park the next messages of the outbox."""
        if self._full_breaker.open_until > self._worker.monotonic():
            return False
        taken = self._outbox.take(MAX_BATCH, MAX_BATCH_BYTES)
        if taken is None:
            self._full_breaker.record_success()
            return False
        queue, batch = taken
        self._parked_last = self._is_parking = True
        call = self._backlogs.park(queue, [message for _, message in batch], self._backlog_limit, busy=free <= 0)
        self._send(call, partial(self._on_parked, queue, batch))
        return True

    def _on_parked(self, queue: str, batch: ParkBatch, reply: Any) -> None:
        self._is_parking = False
        now = self._worker.monotonic()
        if isinstance(reply, StoreUnavailable):
            self._outbox.on_failure(queue, batch)
            if isinstance(reply, StoreFull) and self._full_breaker.record_failure(now):
                logger.error("no task is parked until the store has memory: %s", reply)
            return
        if self._full_breaker.record_success():
            logger.warning("store has memory again")
        if self._outbox.on_reply(queue, batch, reply):
            self._schedule.poll_now(queue, now)

    def _poll(self, free: int) -> bool:
        """Request tasks for the free slots."""
        now = self._worker.monotonic()
        queue = self._schedule.due(now, free)
        if queue is None:
            return False
        self._parked_last = False
        self.reserved_slots = max(0, min(free, MAX_BATCH))
        candidates = tuple(self._limits.tenant_spec(queue.name, tenant) for tenant in queue.tenants)
        path = self._limits.queue_path(queue.name)
        own = tuple(task for task in queue.tasks if self._limits.can_run(task))
        others = tuple(task for task in queue.tasks if task not in own)
        request = DispatchRequest(self._lease.worker, self.reserved_slots, path, candidates, own, others)
        queue.sent(now)
        call = self._backlogs.dispatch(queue.name, request, self._limits.version)
        self._send(call, partial(self._on_polled, queue, request))
        return True

    def _on_polled(self, queue: QueuePolls, request: DispatchRequest, reply: Any) -> None:
        self.reserved_slots = 0
        now = self._worker.monotonic()
        if isinstance(reply, StoreUnavailable):
            queue.retry_at(now)
            return
        self._limits.checked_at = now
        if isinstance(reply, StaleLimits):
            self._limits.is_stale = True
            queue.retry_at(now)
        elif isinstance(reply, LeaseLost):
            queue.retry_at(now + RETRY_PAUSE)  # the lease is about to be renewed
        else:
            self._on_dispatched(queue, request, reply, now)

    def _report_unclaimed(self, queue: str, tasks: tuple[str, ...]) -> None:
        for task in tasks:
            if (queue, task) not in self._reported:
                self._reported.add((queue, task))
                logger.warning("queue %s: parked tasks wait that no live worker can run: %s", queue, task)

    def _on_dispatched(self, queue: QueuePolls, request: DispatchRequest, reply: DispatchReply, now: float) -> None:
        queue.tenants, queue.tasks = reply.next, reply.tasks
        self._report_unclaimed(queue.name, reply.unclaimed)
        if reply.wait is not None:
            queue.schedule(now + reply.wait / SECOND, is_expected=reply.wait > 0)
        elif sum(one.admitted for one in reply.dispatched) >= request.free:
            queue.retry_at(now)  # as soon as a slot is free
            if reply.next:
                self._worker.request_scale_up()
        for tenant in reply.next:
            self._parked_tenants.confirm(queue.name, tenant.tenant, now)
        poll_at = self._receiver.receive(request, reply.dispatched, now - queue.polled_at)
        if poll_at is not None:
            queue.retry_at(poll_at)
