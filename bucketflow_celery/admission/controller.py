"""
The gate in front of a worker's pool: who asks the store, and when. Knows no Celery.

A task is asked for only when a slot is free, so that tokens are never taken by one who then waits. Tasks that nothing
limits pass in their turn. Those refused by ``all`` or their queue stand in a line in which only the head asks, once,
when the store said that tokens come: however many wait, and however long, they cost nothing. Those refused by their
tenant or their own limit go back to the broker with a ticket.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter
from typing import Any, TypeAlias

from bucketflow.errors import BucketflowError, StoreUnavailable
from bucketflow_celery.admission.actions import Handling
from bucketflow_celery.admission.decisions import Verdicts
from bucketflow_celery.admission.hold_queues import Line, Lines
from bucketflow_celery.admission.interfaces import Host, NoParking, Parking
from bucketflow_celery.admission.pending_task import Entry
from bucketflow_celery.admission.prechecks import Triage
from bucketflow_celery.admission.reservations import Places
from bucketflow_celery.config.policy import Passage
from bucketflow_celery.scheduling.admit import Ask
from bucketflow_celery.scheduling.ticket import Ticket
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.calls import Asker, Flights, Outcome
from bucketflow_celery.store.circuit_breaker import Outage

__all__ = ["Gate", "Patience"]

logger = logging.getLogger(__name__)

#: Tasks to ask for, each with the line that it stood in, if it stood in any.
Batch: TypeAlias = "list[tuple[Entry, Line | None]]"

#: Most tasks asked for in one call.
MOST = 64
#: Seconds after which a worker that is at work looks for new limits, if it had no other reason to call the store.
LOOK = 5.0
#: Seconds for which a task that may be parked waits for a slot here: longer than that, another worker may have one.
NO_SLOT = 0.1
#: Seconds between two looks for tasks that have been held too long.
SWEEP = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """
    How long is too long, in seconds.

    Attributes:
        max_hold: A message held longer goes back to the broker.
        max_countdown: No countdown is longer.
    """

    max_hold: float
    max_countdown: float


@dataclass(frozen=True, slots=True)
class _Question:
    """What was asked: for each task of the batch its ask, same order."""

    batch: Batch
    asks: Sequence[Ask]


class Gate:
    """
    Admission in one worker.

    Args:
        host: The worker.
        asker: Puts questions to the store.
        resolve: What a request needs that came from a queue; raises ``BucketflowError`` if that cannot be told.
        outage: What to do while the store is away.
        patience: How long is too long.
        stats: Where to count.
    """

    def __init__(  # noqa: PLR0913 - its seams, each given by name
        self,
        host: Host,
        *,
        asker: Asker,
        resolve: Callable[[Any, str], Passage],
        outage: Outage,
        patience: Patience,
        stats: Stats,
    ) -> None:
        self._host = host
        self._resolve = resolve
        self._outage = outage
        self._max_hold = patience.max_hold
        self._stats = stats
        self._room: Parking = NoParking()
        self._room_first = False
        self._handling = Handling(host, stats, patience.max_countdown)
        self._inbox: deque[Entry] = deque()
        self._lines = Lines()
        self._places = Places()
        self._turn = threading.Lock()
        self._again = False
        self._closed = False
        self._next_sweep = 0.0
        self._asker = asker
        self._asked_at = -inf
        self._flights: Flights[_Question] = Flights(stats, self.run)
        self._triage = Triage(self._lines, self._handling, outage, host.monotonic)
        self._verdicts = Verdicts(self._lines, self._places, self._handling, self._triage)

    def open(self, room: Parking) -> None:
        """Let tasks be parked in *room*, and be handed out from there."""
        self._room = self._triage.room = room
        self.run()

    def enter(self, request: Any, queue: str, ticket: Ticket) -> None:
        """Let a task queue up; it starts, waits, returns or fails from here on."""
        try:
            passage = self._resolve(request, queue)
        except BucketflowError as error:
            self._handling.fail(request, error)
            return
        entry = Entry(request, queue, passage, self._host.monotonic(), ticket.since, dict(ticket.dues))
        if not self._triage.can_start(entry):
            return
        self._inbox.append(entry)
        # While a question is on its way nobody else can ask: the round that lands it asks for all who came meanwhile.
        if self._flights.load is None:
            self.run()

    def run(self) -> None:
        """Let in whoever may start. Any thread may call; one at a time works for all of them."""
        self._again = True
        while self._again and not self._closed and self._turn.acquire(blocking=False):
            try:
                while self._again and not self._closed:
                    self._again = False
                    self._round()
            finally:
                self._turn.release()

    def stop(self) -> None:
        """Let nobody in any more. Safe in a signal handler: it only sets a flag."""
        self._closed = True

    def close(self) -> list[Entry]:
        """Stop, and return those who were waiting: the caller leaves them to the broker."""
        self.stop()
        with self._turn:
            flight = self._flights.drop()
            asked = [] if flight is None else [entry for entry, _ in flight.load.batch]
            waiting = [*asked, *self._lines.clear(), *self._inbox]
            self._inbox.clear()
            self._stats.waiting = 0
        return waiting

    def _round(self) -> None:
        self._land()
        self._room.land()
        if self._free() > 0:  # when slots are scarce, fresh tasks and parked ones take turns
            self._room_first = not self._room_first
        if self._room_first:
            self._room.work(self._free)
        self._sweep()
        self._look()
        self._park_those_without_a_slot()
        while self._flights.load is None and (free := self._free()) > 0:
            batch = self._collect(min(free, MOST))
            if batch is None:
                break
            self._put(batch)
        self._room.work(self._free)
        if self._flights.load is None:  # else whoever comes meanwhile is asked for next, in one call
            self._lines.prune()
        self._stats.waiting = len(self._lines) + len(self._inbox)
        self._rest()

    def _free(self) -> int:
        question = self._flights.load
        asked = 0 if question is None else len(question.batch)
        return self._host.free() - asked - self._room.reserved

    def _rest(self) -> None:
        now, wake_at = self._host.monotonic(), inf
        if self._flights.load is None:
            ready_at = max(self._lines.next_ready_at(), self._outage.until)
            if self._inbox or ready_at <= now:
                self._when_free()
            if len(self._lines):
                wake_at = min(ready_at if ready_at > now else self._next_sweep, self._next_sweep)
            first = self._first_worth_parking()
            if first is not None:
                wake_at = min(wake_at, max(first.arrived + NO_SLOT, self._outage.until))
        room_at = self._room.wake_at()
        if room_at is not None and room_at <= now:
            self._when_free()
        elif room_at is not None:
            wake_at = min(wake_at, room_at)
        if wake_at < inf:
            self._host.call_after(max(0.001, wake_at - now), self.run)

    def _when_free(self) -> None:
        if self._free() > 0:  # it got free meanwhile
            self._again = True
        elif self._host.free() <= 0:  # else it waits for an answer, and so do we
            self._host.when_free(self.run)

    def _collect(self, most: int) -> Batch | None:
        """Take up to *most* tasks that may ask, each with the line it stood in; ``None`` if there is nothing to do."""
        now = self._host.monotonic()
        batch: Batch = []
        if self._outage.until <= now:
            for line in self._lines.ready(now):
                taken = line.take_ready(now, most - len(batch))
                if line.level is None:
                    self._inbox.extendleft(reversed(taken))
                else:
                    batch += [(entry, line) for entry in taken]
        if not batch and not self._inbox:
            return None
        while self._inbox and len(batch) < min(most, self._free()):
            entry = self._inbox.popleft()
            if self._triage.must_ask(entry, now):
                batch.append((entry, None))
        return batch

    def _park_those_without_a_slot(self) -> None:
        """Park who has waited for a slot, so that another worker can start it, and who would be parked in any case."""
        now = self._host.monotonic()
        if not self._room.is_open or self._flights.load is not None or self._outage.until > now:
            return
        before = now - NO_SLOT if self._free() <= 0 else -inf
        waiting = deque(entry for entry in self._inbox if not self._is_parked_at_once(entry, now, before))
        if len(waiting) < len(self._inbox):
            self._inbox = waiting

    def _first_worth_parking(self) -> Entry | None:
        if not self._room.is_open:
            return None
        return next((entry for entry in self._inbox if entry.passage.is_worth_parking), None)

    def _is_parked_at_once(self, entry: Entry, now: float, before: float) -> bool:
        passage = entry.passage
        if not passage.is_worth_parking or (entry.arrived >= before and not self._triage.blocks(entry, now)):
            return False
        self._triage.park(entry)
        return True

    def keep(self, entry: Entry, seconds: float) -> None:
        """Hold an entry that could not be parked, for so many seconds."""
        self._triage.keep(entry, seconds)

    def leave(self, entry: Entry) -> None:
        """Take note that an entry does not wait here any more."""
        self._handling.leave(entry)

    def _put(self, batch: Batch) -> None:
        batch = [(entry, line) for entry, line in batch if not self._handling.is_gone(entry)]
        asks = [self._places.question(entry, self._handling.waited(entry)) for entry, _ in batch]
        if asks:
            self._ask(batch, asks)

    def _look(self) -> None:
        """Ask nothing, to hear of new limits, where no task has been asked for of late: none may be limited yet."""
        now = self._host.monotonic()
        is_due = self._room.must_look or now - max(self._asked_at, self._room.looked_at) >= LOOK
        if self._flights.load is None and self._outage.until <= now and is_due:
            self._ask([], [])

    def _ask(self, batch: Batch, asks: Sequence[Ask]) -> None:
        self._asked_at = self._host.monotonic()
        self._room.must_look = False
        send = partial(self._asker.ask, asks, urgent=bool(asks and self._inbox))
        self._flights.put(_Question(batch, asks), send)
        self._land()

    def _land(self) -> None:
        """Act on the outcome of the question that was put, if it is there."""
        flight = self._flights.take()
        if flight is None:
            return
        batch, asks = flight.load.batch, flight.load.asks
        outcome: Outcome = flight.outcome
        if isinstance(outcome, StoreUnavailable):
            self._places.restore(asks)
            self._store_failed(outcome, batch)
            return
        if self._outage.recovered():
            logger.warning("the store of the limits answers again")
        if outcome is None:
            self._places.restore(asks)
            self._resolve_again(batch)
            return
        unsettled = deque(zip(batch, asks, outcome, strict=True))
        try:
            self._verdicts.settle(unsettled)
        finally:
            self._inbox.extendleft(entry for (entry, _), _, _ in reversed(unsettled))

    def _store_failed(self, error: StoreUnavailable, batch: Batch) -> None:
        self._stats.store_errors += 1
        if self._outage.failed(self._host.monotonic()):
            logger.error("%s; on_store_error=%r until it answers", error, self._outage.policy)
        if self._outage.policy != "hold":
            # Nobody waits for the store, so nobody waits for their turn to ask it either.
            self._inbox.extend(self._everybody(batch))
            return
        for entry, line in batch:
            if line is None:
                self._triage.without_store(entry)
        for entry, line in reversed(batch):
            if line is not None:
                entry.ready_at = self._outage.until
                line.put_back([entry])

    def _resolve_again(self, batch: Batch) -> None:
        self._triage.forget()
        # Under the new limits it may be another bucket that binds, or none: everybody queues up anew, in their order.
        self._inbox.extend([entry for entry in self._everybody(batch) if self._renew(entry)])

    def _everybody(self, batch: Batch) -> list[Entry]:
        """Take all who are here out of where they stand, in the order in which they came."""
        newcomers = [self._inbox.popleft() for _ in range(len(self._inbox))]
        waiting = [*(entry for entry, _ in batch), *self._lines.clear(), *newcomers]
        return sorted(waiting, key=attrgetter("arrived"))

    def _renew(self, entry: Entry) -> bool:
        try:
            entry.passage = self._resolve(entry.request, entry.queue)
        except BucketflowError as error:
            self._handling.give_up(entry, error)
            return False
        entry.ready_at = 0.0
        return self._triage.can_start(entry)

    def _sweep(self) -> None:
        now = self._host.monotonic()
        if now < self._next_sweep:
            return
        self._next_sweep = now + SWEEP
        old = {entry for entry in self._lines if now - entry.arrived > self._max_hold}
        self._lines.remove({entry for entry in old if self._handling.give_back(entry)})
