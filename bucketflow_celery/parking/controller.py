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
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.parking.in_flight_tasks import Holdings
from bucketflow_celery.parking.interfaces import Book, Desk, RoomHost, Tenure
from bucketflow_celery.parking.outbox import Confirming, Offer, Offering
from bucketflow_celery.parking.parked_tenants import Blocking
from bucketflow_celery.parking.poll_schedule import Agenda, Queue
from bucketflow_celery.parking.receiver import PAUSE, Receiving
from bucketflow_celery.scheduling.model import Released, Request, Settlement
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.calls import Flights
from bucketflow_celery.store.circuit_breaker import Outage
from bucketflow_celery.store.interfaces import LOST, BacklogStore, Call

__all__ = ["Begin", "Room"]

logger = logging.getLogger(__name__)

#: Makes a call, and tells its reply or ``StoreUnavailable`` to its second argument, later or before it returns.
Begin: TypeAlias = "Callable[[Call[Any], Callable[[Any], None]], None]"

#: Most messages parked, and about the most bytes, or tasks asked for, in one call.
MOST, MOST_BYTES = 64, 1 << 20


class Room:
    """
    Parking in one worker, on one connection to its broker.

    Args:
        host: The worker.
        desk: The gate in front of its pool.
        store: Where the backlogs live.
        begin: Makes calls to it.
        book: Knows the limits.
        tenure: The worker's lease.
        holdings: What it was handed before.
        limit: Most tasks parked of one queue.
        stats: Where to count.
    """

    is_open = True

    def __init__(  # noqa: PLR0913 - its seams, each given by name
        self,
        host: RoomHost,
        desk: Desk,
        *,
        store: BacklogStore,
        begin: Begin,
        book: Book,
        tenure: Tenure,
        holdings: Holdings,
        limit: int,
        stats: Stats,
    ) -> None:
        self._host = host
        self._desk = desk
        self._store = store
        self._begin = begin
        self._book = book
        self._tenure = tenure
        self._holdings = holdings
        self._limit = limit
        self._stats = stats
        self._flights: Flights[Callable[[Any], None]] = Flights(stats, desk.run)  # each with what acts on its outcome
        self._outage = Outage("hold")
        self._agenda = Agenda()
        self._settlements: deque[tuple[str, Settlement]] = deque()
        self._confirming = Confirming()
        self._blocking = Blocking()
        self._offering = Offering(host, desk, self._blocking, self._confirming, stats)
        self._receiving = Receiving(host, tenure, holdings, stats)
        self._parked_last = False
        self._closed = False
        self.reserved = 0
        self.must_look = False
        self.looked_at = -inf

    def call(self, queue: str) -> None:
        """Take note that there is something to do in *queue*. Any thread may call."""
        self._agenda.call(queue)
        self.wake()

    def wake(self) -> None:
        """Let the gate do a round. Any thread may call."""
        self._host.call_soon(self._desk.run)

    def blocks(self, entry: Entry) -> bool:
        """Return whether its tenant is known to have tasks parked, so that *entry* need not ask."""
        return self._blocking.blocks(entry, self._host.monotonic())

    def may_have(self, entry: Entry) -> bool:
        """Return whether *entry* may have been parked before it came, and even have run: only parking it can tell."""
        return self._host.is_redelivered(entry)

    def add(self, entry: Entry) -> None:
        """Park *entry*."""
        self._offering.add(entry)

    def wake_at(self) -> float | None:
        """Return when to ask next, in seconds of the monotonic clock; ``None`` while a call is on its way."""
        if self._flights.load is not None or self._closed:
            return None
        return max(self._outage.until, self._agenda.next_at())

    def close(self) -> list[Entry]:
        """Stop, and return the entries that are not known to be stored: the caller leaves them to the broker."""
        self._closed = True
        self._flights.drop()
        for queue, settlement in self._settlements:
            self._holdings.told(queue, settlement, heard=False)
        return self._offering.entries()

    def work(self, free: Callable[[], int]) -> None:
        """Send what there is to send; *free* tells for how many tasks there are slots."""
        if self._agenda.update(self._host.queues(), self._host.monotonic()):
            self.must_look = True
        while self._flights.load is None and not self._closed and self._outage.until <= self._host.monotonic():
            if not (self._settle() or self._park_or_ask(free())):
                return

    def land(self) -> None:
        """Act on the outcome of the call that was on its way, if it is there."""
        flight = self._flights.take()
        if flight is None:
            return
        if isinstance(flight.outcome, StoreUnavailable):
            self._stats.store_errors += 1
            if self._outage.failed(self._host.monotonic()):
                logger.error("%s; parked tasks wait until it answers", flight.outcome)
        elif self._outage.recovered():
            logger.warning("the store of the parked tasks answers again")
        flight.load(flight.outcome)

    def _fly(self, call: Call[Any], land: Callable[[Any], None]) -> None:
        self._flights.put(land, partial(self._begin, call))
        self.land()

    def _park_or_ask(self, free: int) -> bool:
        if self._parked_last:
            return self._ask(free) or self._park(free)
        return self._park(free) or self._ask(free)

    # What has ended

    def _settle(self) -> bool:
        self._settlements.extend(self._holdings.settlements())
        now = self._host.monotonic()
        if not self._settlements:
            due = self._confirming.due(now)
            if due is None:
                return False
            self._settlements.append((due, Settlement(self._tenure.worker)))
        queue, settlement = self._settlements[0]

        def land(outcome: Any) -> None:
            self._settlements.popleft()  # not earlier: what is under way when the room closes is told again
            self._holdings.told(queue, settlement, heard=not isinstance(outcome, StoreUnavailable))

        confirmed = self._confirming.take(queue, now)
        self._fly(self._store.settle(queue, replace(settlement, confirmed=confirmed)), land)
        return True

    # What is parked

    def _park(self, free: int) -> bool:
        taken = self._offering.take(MOST, MOST_BYTES)
        if taken is None:
            return False
        queue, offer = taken
        self._parked_last = True
        call = self._store.park(queue, [parcel for _, parcel in offer], self._limit, busy=free <= 0)
        self._fly(call, partial(self._on_parked, queue, offer))
        return True

    def _on_parked(self, queue: str, offer: Offer, outcome: Any) -> None:
        if isinstance(outcome, StoreUnavailable):
            self._offering.on_silence(queue, offer)
        elif self._offering.on_answer(queue, offer, outcome):
            self._agenda.ask_now(queue, self._host.monotonic())

    # What is handed out

    def _ask(self, free: int) -> bool:
        queue = self._agenda.due(self._host.monotonic(), free)
        if queue is None:
            return False
        self._parked_last = False
        self._ask_for(queue, max(0, free))
        return True

    def _ask_for(self, queue: Queue, free: int) -> None:
        free = min(free, MOST)
        candidates = tuple(self._book.candidate(queue.name, known) for known in queue.known)
        request = Request(self._tenure.worker, free, self._book.common(queue.name), candidates)
        queue.asked_at, queue.ask_at, queue.has_turn = self._host.monotonic(), inf, False
        self.reserved = free
        call = self._store.release(queue.name, request, self._book.version)
        self._fly(call, partial(self._on_answer, queue, request))

    def _on_answer(self, queue: Queue, request: Request, outcome: Any) -> None:
        self.reserved = 0
        now = self._host.monotonic()
        if isinstance(outcome, StoreUnavailable):
            queue.ask_at = now
            return
        version, released = outcome
        self.looked_at = now
        if released is None:
            self.must_look = True
            queue.ask_at = now
            self._renew_book(version)
        elif released == LOST:
            queue.ask_at = now + PAUSE
        else:
            self._on_released(queue, request, released, now)

    def _renew_book(self, version: str) -> None:
        try:
            if version != self._book.version:
                self._book.renew()
        except StoreUnavailable:
            self._outage.failed(self._host.monotonic())

    def _on_released(self, queue: Queue, request: Request, released: Released, now: float) -> None:
        queue.known = released.next
        if released.wait is not None:
            queue.ask_at = min(queue.ask_at, now + released.wait / SECOND)  # it may have been called meanwhile
            queue.has_turn = released.wait > 0
        elif sum(handed.admitted for handed in released.handed) >= request.free:
            queue.ask_at = now  # as soon as a slot is free
            self._host.lacks_slots(bool(released.next))
        for known in released.next:
            self._blocking.remember(queue.name, known.tenant, now)
        ask_at = self._receiving.receive(request, released.handed, now - queue.asked_at)
        if ask_at is not None:
            queue.ask_at = ask_at
