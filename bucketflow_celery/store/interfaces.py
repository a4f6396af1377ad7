"""Interfaces of a store: levels, the fleet's limits, and backlogs. Implemented by Redis and, for tests, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest, LevelState
from bucketflow_celery.scheduling.model import DispatchReply, DispatchRequest, Lane, ParkedMessage, Settlement

__all__ = [
    "ALL_QUEUES",
    "Announced",
    "BacklogStore",
    "BacklogView",
    "FleetLimits",
    "LaneView",
    "LeaseLost",
    "LeasedTaskView",
    "Listener",
    "StaleLimits",
    "Store",
    "StoreCall",
]

T_co = TypeVar("T_co", covariant=True)

#: A notification with this name in place of a queue's: look at all queues, and at the limits.
ALL_QUEUES = ""


class StoreCall(Protocol[T_co]):
    """One call to the store, to be made at once or from an event loop."""

    def run(self) -> T_co:
        """Make the call and return its reply. Raises ``StoreUnavailable``."""


@dataclass(frozen=True, slots=True)
class StaleLimits:
    """
    The reply to a call that was made from limits that are no longer in force; the call has done nothing.

    Attributes:
        version: Of the limits in force.
    """

    version: str


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """The reply to a request for tasks by a worker without a lease; no task was dispatched."""


@dataclass(frozen=True, slots=True)
class LeasedTaskView:
    """
    A task that was dispatched to a worker, without its message.

    Attributes:
        uid: What identifies its message.
        queue: The queue it came from.
        lane: The lane it came from.
        since: When it was parked, in µs of the store's clock.
    """

    uid: bytes
    queue: str
    lane: Lane
    since: int


@dataclass(frozen=True, slots=True)
class LaneView:
    """
    The state of one lane.

    Attributes:
        lane: The lane.
        count: Number of tasks in it.
        since: When its first task was parked, in µs of the store's clock.
    """

    lane: Lane
    count: int
    since: int


class BacklogView(NamedTuple):
    """
    The state of the backlog of one queue.

    Attributes:
        now: The store's time in µs.
        costs: Total cost of the tasks of each tenant, in tokens.
        lanes: Every lane.
        unclaimed: The parked task types that no live worker can run.
        is_served: Whether a live worker dispatches tasks of the queue.
    """

    now: int
    costs: Mapping[str, float]
    lanes: Sequence[LaneView]
    unclaimed: frozenset[str] = frozenset()
    is_served: bool = True

    def select(self, tenant: str | None, task: str | None) -> list[Lane]:
        """Return the lanes of one tenant (``""``: none) and of one task type; ``None`` stands for any."""
        found = (view.lane for view in self.lanes)
        return [lane for lane in found if tenant in (None, lane.tenant) and task in (None, lane.task)]


class Listener(Protocol):
    """Receives notifications about queues whose backlog needs a worker."""

    def get(self, timeout: float) -> str | None:
        """
        Return the queue named by the next notification, or ``ALL_QUEUES``; ``None`` after *timeout* seconds.

        Raises ``StoreUnavailable``.
        """


class BacklogStore(Protocol):
    """
    Keeps the backlogs.

    A dispatched task belongs to its worker for as long as the worker renews its lease, however long the task runs. Any
    other worker may reclaim the tasks of an expired lease: they return to the front of their lanes.

    Every method may raise ``StoreUnavailable``, soon, and no call is repeated.
    """

    def park(self, queue: str, messages: Sequence[ParkedMessage], limit: int, *, busy: bool) -> StoreCall[list[int]]:
        """See :meth:`bucketflow_celery.scheduling.backlog.Backlog.park`."""

    def dispatch(
        self, queue: str, request: DispatchRequest, version: str
    ) -> StoreCall[DispatchReply | StaleLimits | LeaseLost]:
        """See :func:`bucketflow_celery.scheduling.dispatch.dispatch`; *version* is that of the limits in *request*."""

    def settle(self, queue: str, settlement: Settlement) -> StoreCall[int]:
        """Apply *settlement*; the reply is the number of tasks that returned to their lanes."""

    def renew(self, worker: str, seconds: float) -> StoreCall[tuple[bool, list[str]]]:
        """
        Renew the lease of *worker* for *seconds*.

        The reply:
            Whether the worker had a lease. If not, its tasks are or will be reclaimed, and it needs another name. And
            workers whose lease has expired, the longest expired first, at most 16.
        """

    def announce(self, worker: str, queues: Sequence[str]) -> StoreCall[list[str]]:
        """
        Record that *worker* dispatches the tasks of *queues* while it has a lease; none if it ends.

        The reply:
            Queues with parked tasks that no live worker serves. Each is named once in ten minutes, by one call.
        """

    def leased_tasks(self, worker: str) -> StoreCall[list[LeasedTaskView]]:
        """Reply with the tasks dispatched to *worker*, ordered by when they were parked."""

    def purge(self, queue: str, lane: Lane) -> int:
        """Delete the tasks parked in *lane*; return their number."""

    def move(self, queue: str, to: str, lane: Lane, change: Callable[[bytes], bytes]) -> int:
        """
        Move the tasks parked in *lane* of *queue* to the end of the same lane of *to*; return their number.

        Each step is atomic: at any time, a task is in one of the two.

        Args:
            queue: Where they are.
            to: Another queue.
            lane: Their lane.
            change: Returns a message as *to* is to keep it.
        """

    def queues(self) -> list[str]:
        """Return the queues in which tasks are parked, sorted."""

    def view(self, queue: str) -> BacklogView:
        """Return the state of the backlog of *queue*."""

    def listen(self) -> AbstractContextManager[Listener]:
        """Return a context manager that receives notifications while it is open."""


class FleetLimits(NamedTuple):
    """
    What was set for the whole fleet.

    Attributes:
        version: Changes with any of the others and with each purge; empty if nothing was set.
        table: The table of limits; ``None`` if none was set.
        paused: What is paused: see :func:`bucketflow_celery.config.table.pause_name`.
    """

    version: str
    table: Mapping[str, Any] | None
    paused: frozenset[str]


class Announced(NamedTuple):
    """
    The announcements that count now.

    Attributes:
        workers: Number of workers, the one that asks included.
        other_tables: Digests of other configured tables than its own, sorted.
    """

    workers: int
    other_tables: list[str]


class Store(Protocol):
    """
    Keeps the levels and the fleet's limits.

    Every method may raise ``StoreUnavailable``, soon, and no call is repeated.
    """

    @property
    def backlogs(self) -> BacklogStore:
        """The backlogs."""

    def admit(
        self, requests: Sequence[AdmissionRequest], version: str
    ) -> StoreCall[Sequence[AdmissionDecision] | StaleLimits]:
        """
        Decide about *requests* in one round trip.

        Args:
            requests: Length >= 0; no requests only compare the version.
            version: Of the limits that the requests were made from.

        The reply:
            One decision a request, same order.
        """

    def cancel_reservation(self, request: AdmissionRequest) -> None:
        """Cancel the reservations in *request*: its task will not come."""

    def charge(self, costs: Sequence[tuple[Level, float]]) -> StoreCall[None]:
        """Take tokens that were granted without the store, at each level its own number, or all that its bucket has."""

    def peek(self, path: Sequence[Level]) -> tuple[int, list[LevelState]]:
        """Return the store's time in µs, and the state of each level of *path*; same length and order."""

    def limits(self) -> FleetLimits:
        """Return what was set for the whole fleet."""

    def set_limits(self, raw: Mapping[str, Any] | None, version: str | None = None) -> StaleLimits | None:
        """
        Set the table for the whole fleet; ``None`` leaves each worker its configured one.

        Args:
            raw: The table.
            version: Of the limits that must be in force; ``None``: any.

        Returns:
            ``None``, or the version in force if it is another one; nothing has changed then.
        """

    def purges(self) -> tuple[int, Sequence[tuple[str, int]]]:
        """Return the store's time, and the name and the instant of each purge mark; all in µs of the store's clock."""

    def mark_purge(self, name: str) -> None:
        """Record a purge at this instant; see :meth:`bucketflow_celery.scheduling.purges.Purge.write`."""

    def announce_worker(self, worker: str, digest: str, seconds: float) -> StoreCall[Announced]:
        """Announce for *seconds* that *worker* runs, and the *digest* of its configured table."""

    def pause(self, name: str, *, paused: bool) -> None:
        """Pause or resume *name* in the whole fleet; see :func:`bucketflow_celery.config.table.pause_name`."""

    def check_access(self, *, parks: bool) -> None:
        """
        Check that this process may do at the store what a worker does; *parks*: one that parks tasks.

        Raises ``StoreAccessDenied``, which names what it may not do.
        """

    def after_fork(self) -> None:
        """Leave the connections to the parent process that opened them."""

    def close(self) -> None:
        """Close the connections."""
