"""
The backlogs of a fleet and whose their tasks are, where they live: the seam, and the one that lives in memory.

A task that was handed out belongs to a worker for as long as that worker renews its lease, however long the task runs.
The tasks of a worker that does not are taken from it, by any other, and go back in front of their lanes.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, Protocol, TypeVar

from bucketflow.clock import Clock
from bucketflow.limit import SECOND
from bucketflow_celery.admission import LevelState
from bucketflow_celery.backlog import Backlog, give_back
from bucketflow_celery.parked import Lane, Owned, Parcel, Released, Request, Settlement
from bucketflow_celery.release import release

__all__ = [
    "DEAD",
    "EVERY_QUEUE",
    "LOST",
    "BacklogStore",
    "BacklogView",
    "Call",
    "LaneView",
    "Listener",
    "MemoryBacklogs",
    "OwnedView",
    "Reply",
]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

#: In place of a queue's name: look at all of them, and at the limits.
EVERY_QUEUE = ""
#: In place of an answer to a request: the worker has no lease.
LOST = "lost"
#: Most workers named as dead in one answer.
DEAD = 16


class Call(Protocol[T_co]):
    """One call to the store, to be made now or from an event loop."""

    def run(self) -> T_co:
        """Make it and return its reply. Raises ``StoreUnavailable``."""


class Reply(Generic[T]):
    """
    A call that needs no I/O.

    Args:
        function: Makes it.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.run = function


@dataclass(frozen=True, slots=True)
class OwnedView:
    """A task that was handed to a worker, without its message: see :class:`~bucketflow_celery.parked.Owned`."""

    uid: bytes
    queue: str
    lane: Lane
    since: int


@dataclass(frozen=True, slots=True)
class LaneView:
    """
    One lane, seen from outside.

    Attributes:
        lane: Which.
        count: How many tasks wait in it.
        since: When the first of them was parked, in µs of the store's clock.
    """

    lane: Lane
    count: int
    since: int


class BacklogView(NamedTuple):
    """
    What is parked of one queue, seen from outside.

    Attributes:
        now: The store's time in µs.
        costs: What the tasks of each tenant cost together, in tokens.
        lanes: Every lane.
    """

    now: int
    costs: Mapping[str, float]
    lanes: Sequence[LaneView]


class Listener(Protocol):
    """Hears of queues in which there is something to do."""

    def get(self, timeout: float) -> str | None:
        """Wait up to *timeout* seconds for the name of a queue, or ``EVERY_QUEUE``. Raises ``StoreUnavailable``."""


class BacklogStore(Protocol):
    """Keeps the backlogs. Every call may raise ``StoreUnavailable``, soon, and is not repeated."""

    def park(self, queue: str, parcels: Sequence[Parcel], limit: int, *, busy: bool) -> Call[list[int]]:
        """See :meth:`bucketflow_celery.backlog.Backlog.park`."""

    def release(self, queue: str, request: Request, version: str) -> Call[tuple[str, Released | str | None]]:
        """
        See :meth:`bucketflow_celery.release.release`.

        Returns:
            The version of the limits now in force; and the answer, or ``None`` if *version* is another one, or
            ``LOST``.
        """

    def settle(self, queue: str, settlement: Settlement) -> Call[int]:
        """Act on *settlement*; return how many tasks went back."""

    def renew(self, worker: str, seconds: float) -> Call[tuple[bool, list[str]]]:
        """
        Renew the lease of *worker* for so many seconds.

        Returns:
            Whether it had one: if not, its tasks are or will be another's, and it needs another name. And who is dead,
            the longest first, at most ``DEAD`` of them.
        """

    def owned(self, worker: str) -> Call[list[OwnedView]]:
        """Return what belongs to *worker*, by when it was parked."""

    def purge(self, queue: str, lane: Lane) -> int:
        """Forget what is parked in *lane*; return how many tasks that were."""

    def queues(self) -> list[str]:
        """Return the queues in which something is parked, sorted."""

    def view(self, queue: str) -> BacklogView:
        """Return what is parked of *queue*."""

    def listen(self) -> AbstractContextManager[Listener]:
        """Return a context manager that listens while it is open."""


class MemoryBacklogs:
    """
    Backlogs for one process.

    Args:
        clock: Its time.
        lock: Guards *states*.
        states: Of the levels, by key.
        version: Tells the version of the limits.
    """

    def __init__(
        self,
        clock: Clock,
        lock: threading.Lock,
        states: MutableMapping[str, LevelState],
        version: Callable[[], str],
    ) -> None:
        self._clock = clock
        self._lock = lock
        self._states = states
        self._version = version
        self._backlogs: dict[str, Backlog] = {}
        self._owned: defaultdict[str, dict[bytes, Owned]] = defaultdict(dict)
        self._workers: dict[str, int] = {}
        self._listeners: list[SimpleQueue[str]] = []

    def blocks(self, queue: str, tenant: str) -> bool:
        """See :meth:`bucketflow_celery.backlog.Backlog.blocks`. The caller holds the lock."""
        return queue in self._backlogs and self._backlogs[queue].blocks(tenant, self._clock.now())

    def park(self, queue: str, parcels: Sequence[Parcel], limit: int, *, busy: bool) -> Reply[list[int]]:
        """See :class:`BacklogStore`."""

        def park() -> list[int]:
            with self._lock:
                positions, call = self._of(queue).park(parcels, limit, self._clock.now(), busy=busy)
                self._call(queue, call)
                return positions

        return Reply(park)

    def release(self, queue: str, request: Request, version: str) -> Reply[tuple[str, Released | str | None]]:
        """See :class:`BacklogStore`."""

        def hand_out() -> tuple[str, Released | str | None]:
            with self._lock:
                if version != self._version():
                    return self._version(), None
                if self._workers.get(request.worker, -1) < 0:
                    return version, LOST
                backlog, owned = self._of(queue), self._owned[request.worker]
                now = self._clock.now()
                released, call = release(backlog, request, owned, self._states, now, version=version)
                self._call(queue, call)
                return version, released

        return Reply(hand_out)

    def settle(self, queue: str, settlement: Settlement) -> Reply[int]:
        """See :class:`BacklogStore`."""
        return Reply(lambda: self._settle(queue, settlement))

    def _settle(self, queue: str, settlement: Settlement) -> int:
        worker, now = settlement.worker, self._clock.now()
        with self._lock:
            if settlement.dead:
                if self._workers.get(worker, -1) > now:
                    return 0
                self._workers[worker] = -1
                self._of(queue).turns.pop(worker, None)
            owned, backlog = self._owned[worker], self._of(queue)
            for uid in settlement.ended:
                if owned.pop(uid, None) is not None:
                    del backlog.messages[uid]
            for uid in settlement.confirmed:
                backlog.unconfirmed.pop(uid, None)
            returned = 0
            for uid, _, may_have_started in reversed(settlement.returned):  # each goes in front of the one before
                one = owned.pop(uid, None)
                if one is not None:
                    item = replace(one.item, redelivered=one.item.redelivered or may_have_started)
                    backlog.put_back(replace(one, item=item))
                    returned += 1
            self._call(queue, returned > 0 and backlog.call_soon(now))
            for path, cost in settlement.refunds:
                give_back(path, cost, self._states, now)
            if settlement.dead and not owned:
                del self._workers[worker], self._owned[worker]
            return returned

    def renew(self, worker: str, seconds: float) -> Reply[tuple[bool, list[str]]]:
        """See :class:`BacklogStore`."""

        def renew() -> tuple[bool, list[str]]:
            with self._lock:
                now = self._clock.now()
                alive_until = self._workers.get(worker, 0)
                if alive_until >= 0:
                    self._workers[worker] = now + round(seconds * SECOND)
                dead = sorted((until, name.encode()) for name, until in self._workers.items() if until <= now)
                return alive_until > 0, [name.decode() for _, name in dead[:DEAD]]

        return Reply(renew)

    def owned(self, worker: str) -> Reply[list[OwnedView]]:
        """See :class:`BacklogStore`."""

        def owned() -> list[OwnedView]:
            with self._lock:
                mine = self._owned.get(worker, {}).values()
                views = [OwnedView(one.item.uid, one.queue, one.lane, one.item.since) for one in mine]
                return sorted(views, key=lambda view: (view.since, view.uid))

        return Reply(owned)

    def purge(self, queue: str, lane: Lane) -> int:
        """See :class:`BacklogStore`."""
        with self._lock:
            return self._of(queue).purge(lane)

    def queues(self) -> list[str]:
        """See :class:`BacklogStore`."""
        with self._lock:
            return sorted(name for name, backlog in self._backlogs.items() if backlog.count)

    def view(self, queue: str) -> BacklogView:
        """See :class:`BacklogStore`."""
        with self._lock:
            backlog = self._of(queue)
            costs = {name: tenant.cost for name, tenant in backlog.tenants.items()}
            lanes = [LaneView(lane, len(line), line[0].since) for lane, line in backlog.lanes()]
            return BacklogView(self._clock.now(), costs, lanes)

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """See :class:`BacklogStore`."""
        calls: SimpleQueue[str] = SimpleQueue()
        self._listeners.append(calls)
        try:
            yield _MemoryListener(calls)
        finally:
            self._listeners.remove(calls)

    def announce(self) -> None:
        """Let every worker look at the limits."""
        self._call(EVERY_QUEUE, True)  # noqa: FBT003 - the answer of whoever decided

    def _of(self, queue: str) -> Backlog:
        return self._backlogs.setdefault(queue, Backlog(queue))

    def _call(self, queue: str, call: bool) -> None:  # noqa: FBT001
        if call:
            for calls in self._listeners:
                calls.put(queue)


class _MemoryListener:
    def __init__(self, calls: SimpleQueue[str]) -> None:
        self._calls = calls

    def get(self, timeout: float) -> str | None:
        try:
            return self._calls.get(timeout=timeout)
        except Empty:
            return None
