"""What is parked, and what workers and the backlogs say to each other about it: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bucketflow_celery.config.levels import Level

__all__ = [
    "FULL",
    "KNOWN",
    "DispatchReply",
    "DispatchRequest",
    "DispatchedTask",
    "Lane",
    "LeasedTask",
    "ParkedMessage",
    "ParkedTask",
    "Settlement",
    "TaskSpec",
    "TenantSpec",
    "TenantSummary",
]

#: Refused: the backlog is full. TenantSummary: it is parked already. Both in place of a position.
FULL, KNOWN = -1, 0


class Lane(NamedTuple):
    """One line of parked tasks: of a tenant (``""`` for none), a task type, and a rank, the lowest first."""

    tenant: str
    task: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class ParkedTask:
    """
    One parked task, without its message.

    Attributes:
        uid: What identifies the message.
        since: When it was parked, in µs of the store's clock; 1 µs more than the one before it in the same call.
        cost: Tokens it takes at every level.
        deadline: When it is given up, in µs of the store's clock; 0: never.
        redelivered: Whether a worker had it before.
    """

    uid: bytes
    since: int
    cost: float = 1.0
    deadline: int = 0
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class LeasedTask:
    """A task that was dispatched to a worker: where it came from, and goes back to if the worker dies."""

    queue: str
    lane: Lane
    item: ParkedTask


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """
    What a worker says about one task type of a tenant.

    Attributes:
        task: Its name.
        ranks: The ranks that have lanes, as far as the worker knows.
        level: Its limit, if any.
        known: Whether this worker can run it.
        paused: Whether it may not start, it or its tenant.
    """

    task: str
    ranks: tuple[int, ...]
    level: Level | None = None
    known: bool = True
    paused: bool = False


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """
    What a worker says about one tenant that may be next.

    Attributes:
        tenant: Its name; ``""``: the tasks without one.
        types: Its task types, as far as the worker knows.
        weight: Its share relative to others. Above 0.
        level: Its limit, if any.
    """

    tenant: str
    types: tuple[TaskSpec, ...]
    weight: float = 1.0
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """
    One message that is to be parked.

    Attributes:
        uid: What identifies it, also when the broker delivers it a second time.
        lane: Where it waits.
        message: Body, headers, properties and delivery info, as bytes.
        cost: Tokens its task takes at every level. Above 0.
        max_wait_us: µs from now until it is given up; 0: never.
        redelivered: Whether a worker had it before.
    """

    uid: bytes
    lane: Lane
    message: bytes
    cost: float = 1.0
    max_wait_us: int = 0
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    What became of tasks of one queue that were dispatched to a worker.

    Attributes:
        worker: Whose they are.
        ended: Uids of those that need no longer be kept.
        confirmed: Uids of messages that the broker has forgotten, so that it delivers none of them again.
        returned: Those that go back in front of their lane, the first to be the first: uid, lane, and whether it may
            have started.
        refunds: What goes back to the levels for tasks that have not started: path and cost.
        dead: Whether they are taken from the worker, which has not renewed its lease.
    """

    worker: str
    ended: tuple[bytes, ...] = ()
    confirmed: tuple[bytes, ...] = ()
    returned: tuple[tuple[bytes, Lane, bool], ...] = ()
    refunds: tuple[tuple[tuple[Level, ...], float], ...] = ()
    dead: bool = False


class TenantSummary(NamedTuple):
    """What the store says about one tenant that may be next: its task types, each with the ranks that have lanes."""

    tenant: str
    types: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class DispatchRequest:
    """
    A worker asks for tasks.

    Attributes:
        worker: Its name.
        free: How many slots it has free.
        common: The levels that all tasks of the queue pass; length 0 to 2, root first.
        candidates: The tenants it knows of. Another that is next ends the dispatch, and is named in the answer.
    """

    worker: str
    free: int
    common: tuple[Level, ...] = ()
    candidates: tuple[TenantSpec, ...] = ()

    def path_of(self, lane: Lane) -> tuple[Level, ...]:
        """Return the levels that the tasks of *lane* pass, root first."""
        candidate = next(one for one in self.candidates if one.tenant == lane.tenant)
        own = (candidate.level, next(kind.level for kind in candidate.types if kind.task == lane.task))
        return (*self.common, *(level for level in own if level is not None))


@dataclass(frozen=True, slots=True)
class DispatchedTask:
    """
    One task that now belongs to the worker.

    Attributes:
        owned: The task.
        message: As it was parked.
        admitted: Whether tokens were taken. If not it must not start: its deadline has passed, or its cost is above
            a capacity.
    """

    owned: LeasedTask
    message: bytes
    admitted: bool


@dataclass(frozen=True, slots=True)
class DispatchReply:
    """
    The answer to a :class:`DispatchRequest`.

    Attributes:
        dispatched: The tasks, in the order in which they are to start.
        wait: µs until asking again is worth while; ``None``: not before this worker is called, or has a free slot.
        next: Who may be next.
    """

    dispatched: tuple[DispatchedTask, ...]
    wait: int | None
    next: tuple[TenantSummary, ...]
