"""
The waiting room, as one worker sees it: what it parks, what it is handed, and what became of that. Knows no Celery.

One call to the store is on its way at a time: first what has ended, then what is to be parked, then the question for
more. A worker asks for as many tasks as it has free slots, when Redis told it to, when it is called, or when a slot of
its own gets free.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol, TypeAlias

from bucketflow.errors import StoreUnavailable
from bucketflow.limit import SECOND
from bucketflow_celery.backlog import (
    FULL,
    KNOWN,
    Candidate,
    Handed,
    Known,
    Lane,
    Parcel,
    Released,
    Request,
    Settlement,
)
from bucketflow_celery.backlogs import EVERY_QUEUE, LOST, BacklogStore, Call
from bucketflow_celery.limits import Level
from bucketflow_celery.lines import Entry
from bucketflow_celery.outage import Outage
from bucketflow_celery.stats import Stats

__all__ = ["Begin", "Book", "Room", "RoomHost", "Tenure"]

logger = logging.getLogger(__name__)

#: Makes a call, and tells its reply or ``StoreUnavailable`` to its second argument, later or before it returns.
Begin: TypeAlias = "Callable[[Call[Any], Callable[[Any], None]], None]"

#: Most messages parked, and most bytes, in one call.
MOST, MOST_BYTES = 64, 1 << 20
#: Seconds after which a worker asks that was neither told to nor called: a call may have been missed.
LOOK = 10.0
#: Seconds for which a tenant is taken to have a backlog since the store last said so.
FRESH = 1.0
#: Seconds after which the broker has surely heard that a message was acknowledged; and most messages it is waited for.
CONFIRMED, UNCONFIRMED = 5.0, 500
#: Seconds before a message is offered again to a backlog that was full.
FULL_PAUSE = 1.0


class RoomHost(Protocol):
    """A worker, as its waiting room sees it."""

    def parcel(self, entry: Entry, *, again: bool) -> Parcel | None:
        """Return *entry* ready to be parked; *again*: another message is parked that looks the same."""

    def is_fresh(self, entry: Entry) -> bool:
        """Return whether the broker says that it delivers *entry* for the first time."""

    def parked(self, entry: Entry, position: int) -> None:
        """Acknowledge a message that is stored, at *position* of its lane; 0: it was before."""

    def receive(self, handed: Handed, on_end: Callable[[bool], None]) -> Entry | None:
        """
        Return a task that was handed out, as if the broker had delivered it; ``None`` if nobody can read it.

        Args:
            handed: The task.
            on_end: To be called once, from any thread: with ``False`` when it is acknowledged or dropped, with ``True``
                when it goes back to where it was.
        """

    def start(self, entry: Entry) -> None:
        """Run it in a free slot."""

    def is_gone(self, entry: Entry) -> bool:
        """Return whether it was revoked or has expired; Celery has then dealt with it."""

    def give_up(self, entry: Entry) -> None:
        """End a task whose time is over, or that can never start: whatever it is, it is told in its result."""

    def queues(self) -> Iterable[str]:
        """Return the queues this worker consumes."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Call *callback* in the worker's loop, from any thread."""

    def monotonic(self) -> float:
        """Return seconds of a clock that never steps."""


class Book(Protocol):
    """What knows the limits."""

    version: str

    def renew(self) -> None:
        """Read the limits again. Raises ``StoreUnavailable``."""

    def common(self, queue: str) -> tuple[Level, ...]:
        """Return the levels that all tasks of *queue* pass."""

    def candidate(self, queue: str, known: Known) -> Candidate:
        """Return what this worker says about a tenant."""


class Tenure(Protocol):
    """A worker's lease."""

    worker: str

    def holds(self) -> bool:
        """Return whether nobody can have taken this worker for dead."""


@dataclass(slots=True)
class _Queue:
    """What is known of the backlog of one queue."""

    ask_at: float = inf
    asked_at: float = -inf
    has_turn: bool = False
    known: tuple[Known, ...] = ()

    @property
    def due_at(self) -> float:
        return min(self.ask_at, self.asked_at + LOOK)


@dataclass(frozen=True, slots=True)
class _Task:
    """A task that was handed out, and to whom."""

    worker: str
    queue: str
    lane: Lane


@dataclass(slots=True)
class _Flight:
    """A call on its way."""

    land: Callable[[Any], None]
    outcome: Any = None
    landed: bool = False


@dataclass(slots=True)
class _Ended:
    """What is to be told of one queue, by the worker that it was handed to."""

    ended: list[bytes] = field(default_factory=list)
    returned: list[tuple[bytes, Lane, bool]] = field(default_factory=list)
    refunds: list[tuple[tuple[Level, ...], float]] = field(default_factory=list)


class Room:
    """
    Parking in one worker.

    Args:
        store: Where the backlogs live.
        book: Knows the limits.
        limit: Most tasks parked of one queue.
        stats: Where to count.
    """

    def __init__(self, store: BacklogStore, book: Book, limit: int, stats: Stats) -> None:
        self._store = store
        self._book = book
        self._limit = limit
        self._stats = stats
        self._lock = threading.Lock()
        self._host: RoomHost | None = None
        self._tenure: Tenure | None = None
        self._begin: Begin | None = None
        self._run: Callable[[], None] = lambda: None
        self._keep: Callable[[Entry, float], None] = lambda _entry, _seconds: None
        self._leave: Callable[[Entry], None] = lambda _entry: None
        self._flight: _Flight | None = None
        self._outage = Outage("hold")
        self._queues: dict[str, _Queue] = {}
        self._calls: deque[str] = deque()
        self._parking: defaultdict[str, deque[Entry]] = defaultdict(deque)
        self._being_parked: list[Entry] = []
        self._twins: set[Entry] = set()
        self._blocked: dict[tuple[str, str], float] = {}
        self._mine: dict[bytes, _Task] = {}
        self._news: deque[tuple[bytes, bool]] = deque()
        self._untold: dict[tuple[str, str], _Ended] = {}
        self._unconfirmed: dict[str, deque[tuple[float, bytes]]] = {}
        self._parked_last = False
        self.reserved = 0
        self.must_look = False

    # What others tell it

    def attach(
        self,
        host: RoomHost,
        tenure: Tenure,
        begin: Begin,
        *,
        run: Callable[[], None],
        keep: Callable[[Entry, float], None],
        leave: Callable[[Entry], None],
    ) -> None:
        """
        Work, on a new connection to the broker.

        Args:
            host: The worker.
            tenure: Its lease.
            begin: Makes calls to the store.
            run: Lets the gate do a round, in which it calls :meth:`work`.
            keep: Takes back an entry that could not be parked, for so many seconds.
            leave: Takes note that an entry does not wait in the worker any more.
        """
        self._run, self._keep, self._leave = run, keep, leave
        self._host, self._tenure, self._begin = host, tenure, begin
        self._queues = {}

    def detach(self) -> list[Entry]:
        """Stop, and return the entries that are not stored yet: the caller leaves them to the broker."""
        waiting = [*self._being_parked, *(entry for parking in self._parking.values() for entry in parking)]
        self._being_parked = []
        self._begin = self._flight = None
        self.reserved = 0
        self._parking.clear()
        self._unconfirmed.clear()  # who knows what the broker has heard
        self._tell_now()
        return waiting

    def call(self, queue: str) -> None:
        """Take note that there is something to do in *queue*. Any thread may call."""
        self._calls.append(queue)
        host = self._host
        if host is not None and self._begin is not None:
            host.call_soon(self._run)

    def owns(self, uid: bytes) -> bool:
        """Return whether the task *uid* was handed to this worker and has not ended."""
        return uid in self._mine

    def blocks(self, queue: str, tenant: str | None) -> bool:
        """Return whether the tenant is known to have tasks parked: a fresh one of it need not ask."""
        assert self._host is not None
        return self._blocked.get((queue, tenant or ""), -inf) > self._host.monotonic() - FRESH

    def add(self, entry: Entry) -> None:
        """Park *entry*."""
        self._parking[entry.queue].append(entry)

    @property
    def is_idle(self) -> bool:
        """Whether no call is on its way."""
        return self._flight is None

    def next_at(self) -> float:
        """Return when it has something to ask, in seconds of the monotonic clock."""
        return max(self._outage.until, min((queue.due_at for queue in self._queues.values()), default=inf))

    # What it does

    def work(self, free: Callable[[], int]) -> None:
        """Land what has come back, and send what there is to send; *free* tells for how many tasks there are slots."""
        self._listen()
        self._note_news()
        while self._begin is not None and self._flight is None and self._outage.until <= self._now():
            slots = free()
            steps = [
                self._settle,
                lambda slots=slots: self._park(busy=slots <= 0),
                lambda slots=slots: self._release(slots),
            ]
            if self._parked_last:
                steps[1:] = reversed(steps[1:])
            if not any(step() for step in steps):
                return

    def _now(self) -> float:
        assert self._host is not None
        return self._host.monotonic()

    def _fly(self, call: Call[Any], land: Callable[[Any], None]) -> None:
        assert self._begin is not None
        self._stats.round_trips += 1
        flight = self._flight = _Flight(land)

        def on_outcome(outcome: Any) -> None:
            flight.outcome, flight.landed = outcome, True
            self._run()

        self._begin(call, on_outcome)
        self.land()

    def land(self) -> None:
        """Act on the outcome of the call that was on its way, if it is there."""
        flight = self._flight
        if flight is None or not flight.landed:
            return
        self._flight = None
        if isinstance(flight.outcome, StoreUnavailable):
            self._stats.store_errors += 1
            if self._outage.failed(self._now()):
                logger.error("%s; parked tasks wait until it answers", flight.outcome)
        elif self._outage.recovered():
            logger.warning("the store of the parked tasks answers again")
        flight.land(flight.outcome)

    def _listen(self) -> None:
        if self._host is None:
            return
        now = self._now()
        while self._calls:
            name = self._calls.popleft()
            self.must_look = self.must_look or name == EVERY_QUEUE
            for queue, waiting in self._queues.items():
                if name in (queue, EVERY_QUEUE):
                    waiting.ask_at = min(waiting.ask_at, now)
        consumed = set(self._host.queues())
        if consumed != set(self._queues):
            self._queues = {queue: self._queues.get(queue, _Queue()) for queue in sorted(consumed)}

    # What has ended

    def _note_news(self) -> None:
        while self._news:
            uid, back = self._news.popleft()
            task = self._mine.get(uid)
            if task is not None:
                untold = self._untold.setdefault((task.queue, task.worker), _Ended())
                if back:
                    untold.returned.append((uid, task.lane, True))
                else:
                    untold.ended.append(uid)

    def _settle(self) -> bool:
        for (queue, worker), untold in self._untold.items():
            settlement = Settlement(
                worker,
                tuple(untold.ended),
                self._take_confirmed(queue),
                tuple(untold.returned),
                tuple(untold.refunds),
            )
            del self._untold[queue, worker]
            self._fly(self._store.settle(queue, settlement), self._on_settled(queue, worker, untold))
            return True
        now = self._now()
        for queue, waiting in self._unconfirmed.items():
            if waiting and (waiting[0][0] < now - 2 * CONFIRMED or len(waiting) > UNCONFIRMED):
                confirmed = self._take_confirmed(queue)
                if confirmed:
                    settlement = Settlement("", confirmed=confirmed)
                    self._fly(self._store.settle(queue, settlement), lambda _outcome: None)
                    return True
        return False

    def _on_settled(self, queue: str, worker: str, told: _Ended) -> Callable[[Any], None]:
        def land(outcome: Any) -> None:
            if isinstance(outcome, StoreUnavailable):
                # Told again: what is no longer owned is not ended twice. Tokens are not given back twice either.
                untold = self._untold.setdefault((queue, worker), _Ended())
                untold.ended[:0] = told.ended
                untold.returned[:0] = told.returned
                return
            self._forget(told)

        return land

    def _forget(self, told: _Ended) -> None:
        for uid in (*told.ended, *(uid for uid, _, _ in told.returned)):
            self._mine.pop(uid, None)

    def _take_confirmed(self, queue: str) -> tuple[bytes, ...]:
        waiting, before = self._unconfirmed.get(queue), self._now() - CONFIRMED
        confirmed = []
        while waiting and waiting[0][0] < before:
            confirmed.append(waiting.popleft()[1])
        return tuple(confirmed)

    def _tell_now(self) -> None:
        """Tell the store what has ended, without an event loop."""
        with self._lock:
            self._note_news()
            untold, self._untold = self._untold, {}
            for (queue, worker), one in untold.items():
                settlement = Settlement(worker, tuple(one.ended), (), tuple(one.returned), tuple(one.refunds))
                try:
                    self._store.settle(queue, settlement).run()
                except StoreUnavailable as error:
                    logger.warning("the end of %d parked task(s) is told later: %s", len(one.ended), error)
                    self._on_settled(queue, worker, one)(error)
                else:
                    self._forget(one)

    def _on_end(self, uid: bytes) -> Callable[[bool], None]:
        def on_end(back: bool) -> None:  # noqa: FBT001 - the answer of whoever ends it
            self._news.append((uid, back))
            if self._begin is None:
                self._tell_now()
            elif self._host is not None:
                self._host.call_soon(self._run)

        return on_end

    # What is parked

    def _park(self, *, busy: bool) -> bool:
        for queue, parking in self._parking.items():
            entries, parcels, size = [], [], 0
            while parking and len(parcels) < MOST and size < MOST_BYTES:
                entry = parking.popleft()
                parcel = self._parcel(entry)
                if parcel is not None:
                    entries.append(entry)
                    parcels.append(parcel)
                    size += len(parcel.message)
            if parcels:
                self._parked_last = True
                self._being_parked = entries
                land = self._on_parked(queue, entries, parcels)
                self._fly(self._store.park(queue, parcels, self._limit, busy=busy), land)
                return True
        return False

    def _parcel(self, entry: Entry) -> Parcel | None:
        assert self._host is not None
        if self._host.is_gone(entry):
            self._leave(entry)
            return None
        parcel = self._host.parcel(entry, again=entry in self._twins)
        if parcel is None:
            self._keep(entry, FULL_PAUSE)
        return parcel

    def _on_parked(self, queue: str, entries: list[Entry], parcels: list[Parcel]) -> Callable[[Any], None]:
        def land(outcome: Any) -> None:
            self._being_parked = []
            if isinstance(outcome, StoreUnavailable):
                for entry in entries:
                    self._keep(entry, self._outage.pause)
                return
            for entry, parcel, position in zip(entries, parcels, outcome, strict=True):
                self._on_position(queue, entry, parcel, position)

        return land

    def _on_position(self, queue: str, entry: Entry, parcel: Parcel, position: int) -> None:
        assert self._host is not None
        if position == FULL:
            self._keep(entry, FULL_PAUSE)
            return
        if position == KNOWN and self._host.is_fresh(entry) and entry not in self._twins:
            self._twins.add(entry)  # somebody has published the same message twice
            self._parking[queue].append(entry)
            return
        self._twins.discard(entry)
        now = self._now()
        self._blocked[queue, parcel.lane.tenant] = now
        if position == 1 and queue in self._queues:
            self._queues[queue].ask_at = now
        self._stats.parked += position != KNOWN
        self._leave(entry)
        self._host.parked(entry, position)
        self._unconfirmed.setdefault(queue, deque()).append((now, parcel.uid))

    # What is handed out

    def _release(self, free: int) -> bool:
        now = self._now()
        for name, queue in self._queues.items():
            if free <= 0 and not (queue.has_turn and queue.ask_at <= now):
                continue
            if queue.due_at > now:
                continue
            self._parked_last = False
            self._queues[name] = self._queues.pop(name)  # the others come first next time
            self._ask(name, queue, max(0, free))
            return True
        return False

    def _ask(self, name: str, queue: _Queue, free: int) -> None:
        assert self._tenure is not None
        candidates = tuple(self._book.candidate(name, known) for known in queue.known)
        request = Request(self._tenure.worker, free, self._book.common(name), candidates)
        queue.asked_at, queue.ask_at, queue.has_turn = self._now(), inf, False
        self.reserved = free

        def land(outcome: Any) -> None:
            self.reserved = 0
            if isinstance(outcome, StoreUnavailable):
                queue.ask_at = 0.0
                return
            version, released = outcome
            if released is None:
                queue.ask_at = 0.0
                self._renew(version)
            elif released == LOST:
                queue.ask_at = self._now() + 0.1  # the lease is about to be renewed
            else:
                self._on_released(name, queue, request, released)

        self._fly(self._store.release(name, request, self._book.version), land)

    def _renew(self, version: str) -> None:
        try:
            if version != self._book.version:
                self._book.renew()
        except StoreUnavailable:
            self._outage.failed(self._now())

    def _on_released(self, name: str, queue: _Queue, request: Request, released: Released) -> None:
        now = self._now()
        queue.known = released.next
        admitted = sum(handed.admitted for handed in released.handed)
        if released.wait is not None:
            queue.ask_at = now + released.wait / SECOND
            queue.has_turn = released.wait > 0
        elif admitted >= request.free:
            queue.ask_at = now  # as soon as a slot is free
        for known in released.next:
            self._blocked[name, known.tenant] = now
        for handed in released.handed:
            self._mine[handed.owned.item.uid] = _Task(request.worker, name, handed.owned.lane)
        for handed in released.handed:
            self._receive(request, handed)

    def _receive(self, request: Request, handed: Handed) -> None:
        assert self._host is not None and self._tenure is not None  # noqa: PT018
        uid, lane = handed.owned.item.uid, handed.owned.lane
        queue = handed.owned.queue
        if not self._tenure.holds() or request.worker != self._tenure.worker:
            # Another may have it by now. If none has, it goes back unharmed.
            self._back(queue, request, handed)
            return
        self._stats.handed += 1
        try:
            entry = self._host.receive(handed, self._on_end(uid))
        except Exception:
            logger.exception("a task of %s in %s could not be received and goes back", lane.task, queue)
            self._back(queue, request, handed)
            return
        if entry is None:
            self._news.append((uid, False))
        elif not handed.admitted:
            self._host.give_up(entry)
        elif self._host.is_gone(entry):
            self._untold.setdefault((queue, request.worker), _Ended()).refunds.append(self._spent(request, handed))
        else:
            self._stats.admitted += 1
            self._host.start(entry)

    def _back(self, queue: str, request: Request, handed: Handed) -> None:
        untold = self._untold.setdefault((queue, request.worker), _Ended())
        untold.returned.append((handed.owned.item.uid, handed.owned.lane, False))
        if handed.admitted:
            untold.refunds.append(self._spent(request, handed))

    def _spent(self, request: Request, handed: Handed) -> tuple[tuple[Level, ...], float]:
        lane, item = handed.owned.lane, handed.owned.item
        candidate = next(one for one in request.candidates if one.tenant == lane.tenant)
        own = next(kind.level for kind in candidate.types if kind.task == lane.task)
        path = (*request.common, candidate.level, own)
        return tuple(level for level in path if level is not None), item.cost
