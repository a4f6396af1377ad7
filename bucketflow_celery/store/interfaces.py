"""Interfaces of a store: the levels, the limits that the fleet was told, and the backlogs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest, LevelState
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, Lane, ParkedMessage, Settlement

__all__ = [
    "ALL_QUEUES",
    "DEAD",
    "LOST",
    "BacklogStore",
    "BacklogView",
    "Call",
    "FleetLimits",
    "LaneView",
    "LeasedTaskView",
    "Listener",
    "Store",
]

T_co = TypeVar("T_co", covariant=True)

#: In place of a queue's name: look at all of them, and at the limits.
ALL_QUEUES = ""
#: In place of an answer to a request: the worker has no lease.
LOST = "lost"
#: Most workers named as dead in one answer.
DEAD = 16


class Call(Protocol[T_co]):
    """One call to the store, to be made now or from an event loop."""

    def run(self) -> T_co:
        """Make it and return its reply. Raises ``StoreUnavailable``."""


@dataclass(frozen=True, slots=True)
class LeasedTaskView:
    """
    A task that was dispatched to a worker, without its message.

    See :class:`~bucketflow_celery.scheduling.model.LeasedTask`.
    """

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
        """Wait up to *timeout* seconds for the name of a queue, or ``ALL_QUEUES``. Raises ``StoreUnavailable``."""


class BacklogStore(Protocol):
    """Keeps the backlogs. Every call may raise ``StoreUnavailable``, soon, and is not repeated."""

    def park(self, queue: str, parcels: Sequence[ParkedMessage], limit: int, *, busy: bool) -> Call[list[int]]:
        """See :meth:`bucketflow_celery.scheduling.backlog.Backlog.park`."""

    def dispatch(
        self, queue: str, request: DispatchRequest, version: str
    ) -> Call[tuple[str, DispatchReply | str | None]]:
        """
        See :meth:`bucketflow_celery.scheduling.dispatch.dispatch`.

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

    def owned(self, worker: str) -> Call[list[LeasedTaskView]]:
        """Return what belongs to *worker*, by when it was parked."""

    def purge(self, queue: str, lane: Lane) -> int:
        """Forget what is parked in *lane*; return how many tasks that were."""

    def queues(self) -> list[str]:
        """Return the queues in which something is parked, sorted."""

    def view(self, queue: str) -> BacklogView:
        """Return what is parked of *queue*."""

    def listen(self) -> AbstractContextManager[Listener]:
        """Return a context manager that listens while it is open."""


class FleetLimits(NamedTuple):
    """
    What the whole fleet was told.

    Attributes:
        version: Changes whenever the rest does; empty if nothing was set.
        table: The table of limits, ``None`` if none was set.
        paused: What is paused: see :func:`bucketflow_celery.config.table.pause_name`.
    """

    version: str
    table: Mapping[str, Any] | None
    paused: frozenset[str]


class Store(Protocol):
    """What keeps the levels. Everything it does may raise ``StoreUnavailable``, soon, and retries nothing."""

    def admit(self, requests: Sequence[AdmissionRequest], version: str) -> tuple[str, list[AdmissionDecision] | None]:
        """
        AdmissionDecision *requests*, in one round trip.

        Args:
            requests: Length >= 0; none at all only learns the version.
            version: The version of the limits they were made from.

        Returns:
            The version now in force, and one answer an ask, same order; ``None`` instead if the version is another.
        """

    def cancel_reservation(self, ask: AdmissionRequest) -> None:
        """Give back the places in *ask*: its task will not come."""

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """Return the store's time in µs, and the state of each level of *path*; same length and order."""

    def limits(self) -> FleetLimits:
        """Return what the whole fleet was told."""

    def set_limits(self, raw: Mapping[str, Any] | None) -> None:
        """Set the table for the whole fleet; ``None`` leaves each worker its own."""

    def pause(self, name: str, *, paused: bool) -> None:
        """Pause or resume, in the whole fleet, what :func:`bucketflow_celery.config.table.pause_name` calls *name*."""

    @property
    def backlogs(self) -> BacklogStore:
        """What is parked."""

    def after_fork(self) -> None:
        """Leave connections to the parent process that opened them."""

    def close(self) -> None:
        """Close what is open."""
