"""
The waiting room, as one worker sees it: who calls the store when. Knows no Celery.

One call to the store is on its way at a time: what has ended is told first; then what is to be parked and the question
for more take turns. A worker asks for as many tasks as it has free slots, when the store told it to, when it is called,
or when a slot of its own gets free.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, TypeAlias

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.interfaces import ActiveLimits, Desk, ParkingWorker, Tenure
from bucketflow_celery.parking.outbox import AckTracker, Outbox, ParkBatch
from bucketflow_celery.parking.parked_tenants import ParkedTenants
from bucketflow_celery.parking.poll_schedule import PollSchedule, QueuePolls
from bucketflow_celery.parking.receiver import PAUSE, DispatchReceiver
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, Settlement
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.calls import InFlightCall
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.store.interfaces import LOST, BacklogStore, Call

__all__ = ["Begin", "ParkingController"]

logger = logging.getLogger(__name__)

#: Makes a call, and tells its reply or ``StoreUnavailable`` to its second argument, later or before it returns.
Begin: TypeAlias = "Callable[[Call[Any], Callable[[Any], None]], None]"

#: Most messages parked, and about the most bytes, or tasks asked for, in one call.
MOST, MOST_BYTES = 64, 1 << 20


class ParkingController:
    """
    Parking in one worker, on one connection to its broker.

    Args:
        worker: The worker.
        desk: The gate in front of its pool.
        store: Where the backlogs live.
        begin: Makes calls to it.
        active_limits: Knows the limits.
        tenure: The worker's lease.
        in_flight: What it was dispatched before.
        limit: Most tasks parked of one queue.
        stats: Where to count.
    """

    is_open = True

    def __init__(  # noqa: PLR0913 - its seams, each given by name
        self,
        worker: ParkingWorker,
        desk: Desk,
        *,
        store: BacklogStore,
        begin: Begin,
        active_limits: ActiveLimits,
        tenure: Tenure,
        in_flight: InFlightTasks,
        limit: int,
        stats: Stats,
    ) -> None:
        self._worker = worker
        self._desk = desk
        self._store = store
        self._begin = begin
        self._active_limits = active_limits
        self._tenure = tenure
        self._in_flight_tasks = in_flight
        self._limit = limit
        self._stats = stats
        self._in_flight: InFlightCall[Callable[[Any], None]] = InFlightCall(
            stats, desk.run
        )  # each with what acts on its outcome
        self._breaker = CircuitBreaker("hold")
        self._schedule = PollSchedule()
        self._settlements: deque[tuple[str, Settlement]] = deque()
        self._acks = AckTracker()
        self._parked_tenants = ParkedTenants()
        self._outbox = Outbox(worker, desk, self._parked_tenants, self._acks, stats)
        self._receiver = DispatchReceiver(worker, tenure, in_flight, stats)
        self._parked_last = False
        self._closed = False
        self.reserved = 0
        self.must_look = False
        self.looked_at = -inf

    def call(self, queue: str) -> None:
        """Take note that there is something to do in *queue*. Any thread may call."""
        self._schedule.call(queue)
        self.wake()

    def wake(self) -> None:
        """Let the gate do a round. Any thread may call."""
        self._worker.call_soon(self._desk.run)

    def blocks(self, task: PendingTask) -> bool:
        """Return whether its tenant is known to have tasks parked, so that *task* need not ask."""
        return self._parked_tenants.blocks(task, self._worker.monotonic())

    def may_have(self, task: PendingTask) -> bool:
        """Return whether *task* may have been parked before it came, and even have run: only parking it can tell."""
        return self._worker.is_redelivered(task)

    def add(self, task: PendingTask) -> None:
        """Park *task*."""
        self._outbox.add(task)

    def wake_at(self) -> float | None:
        """Return when to ask next, in seconds of the monotonic clock; ``None`` while a call is on its way."""
        if self._in_flight.context is not None or self._closed:
            return None
        return max(self._breaker.until, self._schedule.next_at())

    def close(self) -> list[PendingTask]:
        """Stop, and return the tasks that are not known to be stored: the caller leaves them to the broker."""
        self._closed = True
        self._in_flight.drop()
        for queue, settlement in self._settlements:
            self._in_flight_tasks.confirm(queue, settlement, delivered=False)
        return self._outbox.tasks()

    def work(self, free: Callable[[], int]) -> None:
        """Send what there is to send; *free* tells for how many tasks there are slots."""
        if self._schedule.update(self._worker.queues(), self._worker.monotonic()):
            self.must_look = True
        while self._in_flight.context is None and not self._closed and self._breaker.until <= self._worker.monotonic():
            if not (self._settle() or self._park_or_ask(free())):
                return

    def on_reply(self) -> None:
        """Act on the outcome of the call that was on its way, if it is there."""
        flight = self._in_flight.take()
        if flight is None:
            return
        if isinstance(flight.outcome, StoreUnavailable):
            self._stats.store_errors += 1
            if self._breaker.failed(self._worker.monotonic()):
                logger.error("%s; parked tasks wait until it answers", flight.outcome)
        elif self._breaker.recovered():
            logger.warning("the store of the parked tasks answers again")
        flight.context(flight.outcome)

    def _send(self, call: Call[Any], on_reply: Callable[[Any], None]) -> None:
        self._in_flight.put(on_reply, partial(self._begin, call))
        self.on_reply()

    def _park_or_ask(self, free: int) -> bool:
        if self._parked_last:
            return self._ask(free) or self._park(free)
        return self._park(free) or self._ask(free)

    # What has ended

    def _settle(self) -> bool:
        self._settlements.extend(self._in_flight_tasks.settlements())
        now = self._worker.monotonic()
        if not self._settlements:
            due = self._acks.due(now)
            if due is None:
                return False
            self._settlements.append((due, Settlement(self._tenure.worker)))
        queue, settlement = self._settlements[0]

        def on_reply(outcome: Any) -> None:
            self._settlements.popleft()  # not earlier: what is under way when the room closes is told again
            self._in_flight_tasks.confirm(queue, settlement, delivered=not isinstance(outcome, StoreUnavailable))

        confirmed = self._acks.take(queue, now)
        self._send(self._store.settle(queue, replace(settlement, confirmed=confirmed)), on_reply)
        return True

    # What is parked

    def _park(self, free: int) -> bool:
        taken = self._outbox.take(MOST, MOST_BYTES)
        if taken is None:
            return False
        queue, batch = taken
        self._parked_last = True
        call = self._store.park(queue, [parcel for _, parcel in batch], self._limit, busy=free <= 0)
        self._send(call, partial(self._on_parked, queue, batch))
        return True

    def _on_parked(self, queue: str, batch: ParkBatch, outcome: Any) -> None:
        if isinstance(outcome, StoreUnavailable):
            self._outbox.on_failure(queue, batch)
        elif self._outbox.on_answer(queue, batch, outcome):
            self._schedule.poll_now(queue, self._worker.monotonic())

    # What is dispatched out

    def _ask(self, free: int) -> bool:
        queue = self._schedule.due(self._worker.monotonic(), free)
        if queue is None:
            return False
        self._parked_last = False
        self._ask_for(queue, max(0, free))
        return True

    def _ask_for(self, queue: QueuePolls, free: int) -> None:
        free = min(free, MOST)
        candidates = tuple(self._active_limits.tenant_spec(queue.name, known) for known in queue.known)
        request = DispatchRequest(self._tenure.worker, free, self._active_limits.queue_path(queue.name), candidates)
        queue.polled_at, queue.poll_at, queue.is_expected = self._worker.monotonic(), inf, False
        self.reserved = free
        call = self._store.dispatch(queue.name, request, self._active_limits.version)
        self._send(call, partial(self._on_answer, queue, request))

    def _on_answer(self, queue: QueuePolls, request: DispatchRequest, outcome: Any) -> None:
        self.reserved = 0
        now = self._worker.monotonic()
        if isinstance(outcome, StoreUnavailable):
            queue.poll_at = now
            return
        version, released = outcome
        self.looked_at = now
        if released is None:
            self.must_look = True
            queue.poll_at = now
            self._renew_book(version)
        elif released == LOST:
            queue.poll_at = now + PAUSE
        else:
            self._on_released(queue, request, released, now)

    def _renew_book(self, version: str) -> None:
        try:
            if version != self._active_limits.version:
                self._active_limits.refresh()
        except StoreUnavailable:
            self._breaker.failed(self._worker.monotonic())

    def _on_released(self, queue: QueuePolls, request: DispatchRequest, released: DispatchReply, now: float) -> None:
        queue.known = released.next
        if released.wait is not None:
            queue.poll_at = min(queue.poll_at, now + released.wait / SECOND)  # it may have been called meanwhile
            queue.is_expected = released.wait > 0
        elif sum(dispatched.admitted for dispatched in released.dispatched) >= request.free:
            queue.poll_at = now  # as soon as a slot is free
            self._worker.request_scale_up(bool(released.next))
        for known in released.next:
            self._parked_tenants.remember(queue.name, known.tenant, now)
        poll_at = self._receiver.receive(request, released.dispatched, now - queue.polled_at)
        if poll_at is not None:
            queue.poll_at = poll_at
