"""
The tasks parked of one queue, in the order of weighted fair queueing. Pure: no clock, no store, no Celery.

Every tenant has a tag, the virtual time at which its next task may start. Whoever has the lowest is served, and its tag
moves on by ``cost / weight``; the virtual time of the queue is the tag of who was served last. A newcomer begins there,
so it is served soon and gets nothing for the time before. A tenant that its own limit holds up sleeps, and the others
use its share. Within a tenant task types take turns; within a type the line is first come, first served, by rank.

Source: start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996).
``lua/backlog.lua`` and the scripts behind it mirror this file and ``dispatch.py``; a property test plays the same
stories to both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

from bucketflow.algorithm.gcra import refund
from bucketflow.limit import SECOND, Limit
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import EMPTY, LevelState
from bucketflow_celery.scheduling.model import FULL, KNOWN, Lane, LeasedTask, ParkedMessage, ParkedTask, TenantSummary

__all__ = ["DEDUP_TTL", "POLL_GRACE", "Backlog", "Tenant", "TypeLanes", "by_score", "give_back"]

#: µs by which a worker may miss its turn before it is taken for one that does not come.
POLL_GRACE = 50_000
#: µs by which the next worker to come may be too late without another being called.
TOLERANCE = 10_000
#: µs between two calls at least: those who are called need a moment to answer.
NOTIFY_INTERVAL = 20_000
#: µs after which nobody remembers a message any more that its broker may still deliver again.
DEDUP_TTL = 86_400 * SECOND


@dataclass(slots=True)
class TypeLanes:
    """The lanes of one task type, by rank, and the turn in which it was last served."""

    turn: int
    lanes: dict[int, deque[ParkedTask]] = field(default_factory=dict)


@dataclass(slots=True)
class Tenant:
    """One tenant that has tasks parked: its tag, what they cost, and its task types."""

    tag: float
    turn: int = 0
    cost: float = 0.0
    types: dict[str, TypeLanes] = field(default_factory=dict)

    def turns(self) -> list[str]:
        """Return the task types, whose turn it is first."""
        return sorted(self.types, key=lambda name: (self.types[name].turn, name))


class Backlog:
    """
    What is parked of one queue.

    Args:
        queue: Its name.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.messages: dict[bytes, bytes] = {}
        self.tenants: dict[str, Tenant] = {}
        self.ready: dict[str, float] = {}
        self.delayed: dict[str, float] = {}
        self.idle: dict[str, float] = {}
        self.polls: dict[str, float] = {}
        self.dedup: dict[bytes, int] = {}
        self.virtual = 0.0
        self.count = 0
        self.notified_at = 0
        self.version = ""

    def blocks(self, tenant: str, now: int) -> bool:
        """Return whether a fresh task of *tenant* would overtake somebody."""
        return tenant in self.tenants or bool(self.ready) or any(wake <= now for wake in self.delayed.values())

    def park(self, parcels: Sequence[ParkedMessage], limit: int, now: int, *, busy: bool) -> tuple[list[int], bool]:
        """
        Store tasks that may not start.

        Args:
            parcels: Length >= 0.
            limit: Most tasks the backlog holds.
            now: µs of the store's clock.
            busy: Whether the worker that parks has no free slot, so that another should be called.

        Returns:
            One position a parcel in its lane, from 1, or ``KNOWN`` or ``FULL``, same order; and whether to call others.
        """
        positions, stored = [], 0
        for parcel in parcels:
            if parcel.uid in self.messages or parcel.uid in self.dedup:
                positions.append(KNOWN)
            elif self.count >= limit:
                positions.append(FULL)
            else:
                self.messages[parcel.uid] = parcel.message
                self.dedup[parcel.uid] = now
                deadline = now + parcel.max_wait_us if parcel.max_wait_us else 0
                item = ParkedTask(parcel.uid, now + stored, parcel.cost, deadline, parcel.redelivered)
                positions.append(self._enter(parcel.lane, item))
                stored += 1
        for uid, at in list(self.dedup.items()) if stored else ():
            if at > now - DEDUP_TTL:
                break
            del self.dedup[uid]
        return positions, stored > 0 and busy and self.should_notify(now, now)

    def purge(self, lane: Lane) -> int:
        """Forget what is parked in *lane*; return how many tasks that were."""
        tenant = self.tenants.get(lane.tenant)
        kind = tenant.types.get(lane.task) if tenant is not None else None
        if tenant is None or kind is None or lane.rank not in kind.lanes:
            return 0
        items = list(kind.lanes[lane.rank])
        for item in items:
            del self.messages[item.uid]
            self.pop_head(lane, tenant)
        self.reset_if_empty()
        return len(items)

    def put_back(self, owned: LeasedTask) -> None:
        """Let a task stand in front of its lane again."""
        self._enter(owned.lane, owned.item, front=True)

    def lanes(self) -> Iterator[tuple[Lane, deque[ParkedTask]]]:
        """Yield every lane with its items, the tenants in any order, their task types in that of their turns."""
        for name, tenant in self.tenants.items():
            for task in tenant.turns():
                for rank, line in sorted(tenant.types[task].lanes.items()):
                    yield Lane(name, task, rank), line

    def should_notify_now(self, now: int) -> bool:
        """Return whether to call a worker, because something can be dispatched out now."""
        return self.should_notify(now, now)

    def _enter(self, lane: Lane, item: ParkedTask, *, front: bool = False) -> int:
        tenant = self.tenants.get(lane.tenant)
        if tenant is None:
            tag = max(self.virtual, self.idle.pop(lane.tenant, 0.0))
            tenant = self.tenants[lane.tenant] = Tenant(tag)
            self.ready[lane.tenant] = tag
        kind = tenant.types.get(lane.task)
        first = front or kind is None or lane.rank < min(kind.lanes)
        if first and lane.tenant in self.delayed:  # it sleeps because of others than this one
            self.wake(lane.tenant)
        if kind is None:
            tenant.turn += 1
            kind = tenant.types[lane.task] = TypeLanes(tenant.turn)
        line = kind.lanes.setdefault(lane.rank, deque())
        if front:
            line.appendleft(item)
        else:
            line.append(item)
        tenant.cost += item.cost
        self.count += 1
        return len(line)

    def pop_head(self, lane: Lane, tenant: Tenant) -> ParkedTask:
        """Take the first task out of *lane*, and forget what is empty then."""
        lanes = tenant.types[lane.task].lanes
        item = lanes[lane.rank].popleft()
        tenant.cost -= item.cost
        self.count -= 1
        if not lanes[lane.rank]:
            del lanes[lane.rank]
        if not lanes:
            del tenant.types[lane.task]
        if not tenant.types:
            del self.tenants[lane.tenant]
            self.ready.pop(lane.tenant, None)
            self.delayed.pop(lane.tenant, None)
            self.idle[lane.tenant] = tenant.tag
        return item

    def wake(self, name: str) -> None:
        """Wake a tenant. Who slept catches up nothing."""
        del self.delayed[name]
        tenant = self.tenants[name]
        tenant.tag = max(self.virtual, tenant.tag)
        self.ready[name] = tenant.tag

    def reset_if_empty(self) -> None:
        """Forget everything once there is nothing."""
        if not self.count:
            self.virtual, self.notified_at, self.version = 0.0, 0, ""
            self.idle.clear()
            self.polls.clear()

    def should_notify(self, ready_at: float, now: int) -> bool:
        """Return whether to call a worker because none comes in time for *ready_at*, and take note of the call."""
        if 0 <= now - self.notified_at < NOTIFY_INTERVAL or self.expected_polls(ready_at, now):
            return False
        self.notified_at = now
        return True

    def expected_polls(self, ready_at: float, now: int) -> int:
        """Return how many workers come in time for what can be dispatched out at *ready_at*."""
        return sum(now - POLL_GRACE <= turn <= max(ready_at, now) + TOLERANCE for turn in self.polls.values())

    def known(self, name: str) -> TenantSummary:
        """Return the task types of the tenant *name*, in the order of their turns, and the ranks of their lanes."""
        tenant = self.tenants[name]
        return TenantSummary(name, tuple((kind, tuple(sorted(tenant.types[kind].lanes))) for kind in tenant.turns()))


def give_back(path: Sequence[Level], cost: float, states: MutableMapping[str, LevelState], now: int) -> None:
    """Put *cost* tokens back into every level of *path*: its task was dispatched out and has not started."""
    for level in path:
        state = states.get(level.key, EMPTY)
        if state.full_at > now:
            # Under the limit they were last reckoned under, whatever that of *path*: it may have changed meanwhile.
            limit = Limit(state.capacity, state.fill_rate)
            states[level.key] = replace(state, full_at=refund(limit, state.full_at, now, cost))


def by_score(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return names and scores as a sorted set keeps them: by score, then by the bytes of the name."""
    return sorted(scores.items(), key=lambda item: (item[1], item[0].encode()))
