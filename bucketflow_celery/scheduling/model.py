"""Value types of the backlog: parked, dispatched and leased tasks, and the messages between worker and store."""

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

#: In place of a position in a lane: the backlog is full, or the message is parked already.
FULL, KNOWN = -1, 0


class Lane(NamedTuple):
    """A FIFO of parked tasks of one tenant (``""`` for none), task type and rank. The lowest rank comes first."""

    tenant: str
    task: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class ParkedTask:
    """
    One parked task, without its message.

    Attributes:
        uid: Identifier of the message.
        since: When it was parked, in µs of the store's clock. Tasks parked in one call are 1 µs apart.
        cost: Tokens that it takes at every level.
        deadline: When it expires, in µs of the store's clock; 0 for never.
        redelivered: Whether it was delivered to a worker before, which may have started it.
    """

    uid: bytes
    since: int
    cost: float = 1.0
    deadline: int = 0
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class LeasedTask:
    """A task that was dispatched to a worker, and the lane to which it returns if the worker's lease expires."""

    queue: str
    lane: Lane
    item: ParkedTask


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """
    What a worker knows about one task type of a tenant that it can run.

    Attributes:
        task: Name of the task type.
        ranks: Ranks of its lanes, as far as the worker knows them.
        level: Level of its limit, if any.
        paused: Whether the task type or its tenant is paused.
    """

    task: str
    ranks: tuple[int, ...]
    level: Level | None = None
    paused: bool = False


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """
    What a worker knows about one tenant that may be next.

    Attributes:
        tenant: Its name; ``""`` for the tasks without a tenant.
        types: Its task types that the worker can run, as far as it knows them.
        weight: Its share relative to other tenants. Above 0.
        level: Level of its limit, if any.
    """

    tenant: str
    types: tuple[TaskSpec, ...]
    weight: float = 1.0
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class ParkedMessage:
    """
    One message to be parked.

    Attributes:
        uid: Its identifier, the same at every delivery.
        lane: The lane that it joins.
        message: Body, headers, properties and delivery info, as bytes.
        cost: Tokens that its task takes at every level. Above 0.
        max_wait_us: µs from now until it expires; 0 for never.
        redelivered: Whether it was delivered to a worker before, which may have started its task.
    """

    uid: bytes
    lane: Lane
    message: bytes
    cost: float = 1.0
    max_wait_us: int = 0
    redelivered: bool = False


class Refund(NamedTuple):
    """
    What a task is refunded that was dispatched and has not started.

    Attributes:
        path: The levels that it paid.
        cost: Tokens that it took from each of them.
        tenant: Its tenant.
        share: By how much its dispatch moved the tag of its tenant.
    """

    path: tuple[Level, ...]
    cost: float
    tenant: str
    share: float


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    What became of tasks of one queue that were dispatched to a worker.

    Attributes:
        worker: Name of the worker that holds their leases.
        ended: Uids of tasks that have ended.
        confirmed: Uids of messages that were acknowledged at the broker, so that it delivers none of them again.
        returned: Tasks that return to the front of their lane, first task first: uid, lane, and whether the task may
            have started.
        refunds: Of the tasks that have not started.
        reclaims: Whether the tasks are reclaimed from *worker* because its lease has expired.
    """

    worker: str
    ended: tuple[bytes, ...] = ()
    confirmed: tuple[bytes, ...] = ()
    returned: tuple[tuple[bytes, Lane, bool], ...] = ()
    refunds: tuple[Refund, ...] = ()
    reclaims: bool = False


class TenantSummary(NamedTuple):
    """What the store reports about a tenant that may be next: its task types, each with the ranks of its lanes."""

    tenant: str
    types: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class DispatchRequest:
    """
    A worker's request for tasks.

    Attributes:
        worker: Name of the worker.
        free: Number of its free slots.
        common: Levels that all tasks of the queue pass, root first; length 0 to 2.
        candidates: Tenants that the worker knows. If another one is next, the dispatch stops, and the reply names it.
        tasks: Parked task types that the worker can run, as far as it knows them.
        other_tasks: Parked task types that it cannot run, likewise. If there is one in neither, the dispatch stops.
    """

    worker: str
    free: int
    common: tuple[Level, ...] = ()
    candidates: tuple[TenantSpec, ...] = ()
    tasks: tuple[str, ...] = ()
    other_tasks: tuple[str, ...] = ()

    def path_of(self, lane: Lane) -> tuple[Level, ...]:
        """Return the levels that the tasks of *lane* pass, root first."""
        candidate = next(one for one in self.candidates if one.tenant == lane.tenant)
        own = (candidate.level, next(kind.level for kind in candidate.types if kind.task == lane.task))
        return (*self.common, *(level for level in own if level is not None))

    def refund_of(self, leased: LeasedTask) -> Refund:
        """Return what *leased* is refunded, which was admitted by this request."""
        tenant, cost = leased.lane.tenant, leased.item.cost
        weight = next(one.weight for one in self.candidates if one.tenant == tenant)
        return Refund(self.path_of(leased.lane), cost, tenant, cost / weight)


@dataclass(frozen=True, slots=True)
class DispatchedTask:
    """
    One task that was dispatched by this reply.

    Attributes:
        owned: The task, which the worker now holds.
        message: Its message, as it was parked.
        admitted: Whether its tokens were taken. If not it must not start: its deadline has passed, or its cost exceeds
            a capacity.
    """

    owned: LeasedTask
    message: bytes
    admitted: bool


@dataclass(frozen=True, slots=True)
class DispatchReply:
    """
    The reply to a :class:`DispatchRequest`.

    Attributes:
        dispatched: The tasks, in the order in which they are to start.
        wait: µs until the next poll; ``None`` if the worker is to wait for a notification or a free slot.
        next: Tenants that may be next.
        tasks: All parked task types, sorted.
        unclaimed: Those of ``DispatchRequest.other_tasks`` that no live worker can run either, sorted.
    """

    dispatched: tuple[DispatchedTask, ...]
    wait: int | None
    next: tuple[TenantSummary, ...]
    tasks: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()
