"""
Start-time fair queueing of the parked tasks of one queue.

Every tenant has a tag, the virtual time at which its next task may start. The tenant with the lowest tag is served, and
its tag grows by ``cost / weight``. The virtual time of the queue is the tag of the tenant that was served last. A new
tenant starts there: it is served soon, and earns no credit for the time before.

Four things differ from the source. A tenant that its own limit refuses is delayed, and the others use its share. The
task types of a tenant are served round-robin. Within a type the order is first come, first served, by rank. And each
task type has an order of tenants of its own, see ``ready_tenants.py``.

``store/lua/backlog.lua``, ``park.lua`` and ``purge.lua`` mirror this file. See ``dispatch.py`` for how tasks leave.

Source: Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field

from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import EMPTY, LevelState
from bucketflow_celery.scheduling.model import FULL, KNOWN, Lane, LeasedTask, ParkedMessage, ParkedTask, TenantSummary
from bucketflow_celery.scheduling.ready_tenants import ReadyTenants

__all__ = [
    "DEDUP_TTL",
    "NOTIFY_INTERVAL",
    "POLL_GRACE",
    "POLL_TOLERANCE",
    "Backlog",
    "Tenant",
    "TypeLanes",
    "refund_path",
]

#: µs by which a worker may miss its expected poll before the poll is no longer expected.
POLL_GRACE = 50_000
#: If a worker is expected to poll within this many µs after a task may start, the others are not notified.
POLL_TOLERANCE = 10_000
#: Least µs between two notifications: a notified worker needs a moment to poll.
NOTIFY_INTERVAL = 20_000
#: µs after which the uid of a parked message is forgotten, even if its broker may still deliver the message again.
DEDUP_TTL = 86_400 * SECOND


@dataclass(slots=True)
class TypeLanes:
    """
    One task type of a tenant.

    Attributes:
        turn: Number of its latest service, among those of its tenant.
        lanes: Its parked tasks by rank.
    """

    turn: int
    lanes: dict[int, deque[ParkedTask]] = field(default_factory=dict)


@dataclass(slots=True)
class Tenant:
    """
    One tenant with parked tasks.

    Attributes:
        tag: Virtual time at which its next task may start.
        turn: Number of its latest service, from 1.
        cost: Tokens that all its tasks take together.
        types: Its task types by name.
    """

    tag: float
    turn: int = 0
    cost: float = 0.0
    types: dict[str, TypeLanes] = field(default_factory=dict)

    def service_order(self) -> list[str]:
        """Return the task types, the one that was served longest ago first."""
        return sorted(self.types, key=lambda name: (self.types[name].turn, name))


class Backlog:
    """
    The parked tasks of one queue.

    Args:
        queue: Name of the queue.

    Attributes:
        queue: As given.
        messages: Messages of parked and leased tasks, by uid.
        tenants: Tenants with parked tasks.
        ready: The tenants whose next task may start, as far as their own limits go.
        delayed: The µs at which each delayed tenant becomes ready, with all its task types.
        types: The task types that were parked since the backlog was empty; of each a worker that can run it, or ``""``.
        idle: Tags of tenants without tasks, until the virtual time passes them.
        polls: The µs at which each worker is expected to poll.
        dedup: The µs at which each uid was parked, until the broker has acknowledged the message.
        virtual: The virtual time.
        count: Number of parked tasks.
        notified_at: The µs of the latest notification; 0 once a worker has polled and left nothing that may start.
        version: Version of the limits under which *delayed* was computed.
    """

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.messages: dict[bytes, bytes] = {}
        self.tenants: dict[str, Tenant] = {}
        self.ready = ReadyTenants()
        self.types: dict[str, str] = {}
        self.delayed: dict[str, float] = {}
        self.idle: dict[str, float] = {}
        self.polls: dict[str, float] = {}
        self.dedup: dict[bytes, int] = {}
        self.virtual = 0.0
        self.count = 0
        self.notified_at = 0
        self.version = ""

    def blocks(self, tenant: str, now: int) -> bool:
        """Return whether a fresh task of *tenant* would overtake a parked one."""
        return tenant in self.tenants or bool(self.ready) or any(ready_at <= now for ready_at in self.delayed.values())

    def park(self, messages: Sequence[ParkedMessage], limit: int, now: int, *, busy: bool) -> tuple[list[int], bool]:
        """
        Park refused tasks, each at the end of its lane.

        Args:
            messages: Length >= 0.
            limit: Most tasks that the backlog holds.
            now: µs of the store's clock.
            busy: Whether the worker that parks has no free slot, so that another one should poll.

        Returns:
            For each message its position in its lane, from 1, or ``KNOWN`` or ``FULL``, same order; and whether to
            notify the workers.
        """
        positions, stored = [], 0
        for one in messages:
            if one.uid in self.messages or one.uid in self.dedup:
                positions.append(KNOWN)
            elif self.count >= limit:
                positions.append(FULL)
            else:
                self.messages[one.uid] = one.message
                self.dedup[one.uid] = now
                deadline = now + one.max_wait_us if one.max_wait_us else 0
                item = ParkedTask(one.uid, now + stored, one.cost, deadline, one.redelivered)
                positions.append(self.enter(one.lane, item))
                stored += 1
        for uid, parked_at in list(self.dedup.items()) if stored else ():
            if parked_at > now - DEDUP_TTL:
                break
            del self.dedup[uid]
        return positions, stored > 0 and busy and self.should_notify(now, now)

    def purge(self, lane: Lane) -> int:
        """Delete the tasks of *lane*; return how many there were."""
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

    def return_to_front(self, owned: LeasedTask) -> None:
        """Put a leased task at the front of its lane."""
        self.enter(owned.lane, owned.item, front=True)

    def lanes(self) -> Iterator[tuple[Lane, deque[ParkedTask]]]:
        """Yield every lane with its tasks: tenants in any order, task types in service order, ranks ascending."""
        for name, tenant in self.tenants.items():
            for task in tenant.service_order():
                for rank, items in sorted(tenant.types[task].lanes.items()):
                    yield Lane(name, task, rank), items

    def enter(self, lane: Lane, item: ParkedTask, *, front: bool = False) -> int:
        """Add *item* at the end of *lane*, or at its front; return the length of the lane."""
        tenant = self.tenants.get(lane.tenant)
        if tenant is None:
            tag = max(self.virtual, self.idle.pop(lane.tenant, 0.0))
            tenant = self.tenants[lane.tenant] = Tenant(tag)
        kind = tenant.types.get(lane.task)
        is_head = front or kind is None or lane.rank < min(kind.lanes)
        if is_head and lane.tenant in self.delayed:  # the delay was computed for other heads
            self.wake(lane.tenant)
        if kind is None:
            tenant.turn += 1
            kind = tenant.types[lane.task] = TypeLanes(tenant.turn)
            self.types.setdefault(lane.task, "")
            self.ready.add(lane.task, lane.tenant, tenant.tag)
        items = kind.lanes.setdefault(lane.rank, deque())
        if front:
            items.appendleft(item)
        else:
            items.append(item)
        tenant.cost += item.cost
        self.count += 1
        return len(items)

    def pop_head(self, lane: Lane, tenant: Tenant) -> ParkedTask:
        """Remove the first task of *lane*, and what is empty without it; return the task."""
        lanes = tenant.types[lane.task].lanes
        item = lanes[lane.rank].popleft()
        tenant.cost -= item.cost
        self.count -= 1
        if not lanes[lane.rank]:
            del lanes[lane.rank]
        if not lanes:
            del tenant.types[lane.task]
            self.ready.remove(lane.task, lane.tenant)
        if not tenant.types:
            del self.tenants[lane.tenant]
            self.delayed.pop(lane.tenant, None)
            self.idle[lane.tenant] = tenant.tag
        return item

    def wake(self, name: str) -> None:
        """Make a delayed tenant ready. Its tag moves up to the virtual time: a delay earns no credit."""
        del self.delayed[name]
        tenant = self.tenants[name]
        tenant.tag = max(self.virtual, tenant.tag)
        for task in tenant.types:
            self.ready.add(task, name, tenant.tag)

    def delay(self, name: str, tasks: Iterable[str], until: float) -> None:
        """Delay the types *tasks* of a tenant until *until*, in µs. Its other types stay ready for other workers."""
        for task in tasks:
            self.ready.remove(task, name)
        self.delayed[name] = min(until, self.delayed.get(name, until))

    def set_tag(self, name: str, tag: float) -> None:
        """Set the tag of the tenant *name*."""
        tenant = self.tenants[name]
        tenant.tag = tag
        for task in tenant.types:
            if self.ready.has(task, name):
                self.ready.add(task, name, tag)

    def refund_turn(self, name: str, share: float) -> None:
        """Move the tag of a tenant back by *share*, for a task that has not started; it earns no credit by that."""
        if name in self.tenants:
            self.set_tag(name, self._tag_without(self.tenants[name].tag, share))
        elif name in self.idle:
            self.idle[name] = self._tag_without(self.idle[name], share)

    def _tag_without(self, tag: float, share: float) -> float:
        return max(tag - share, min(tag, self.virtual))

    def unclaimed(self, is_live: Callable[[str], bool]) -> list[str]:
        """Return the parked task types that no worker can run for which *is_live* holds, sorted."""
        return sorted(task for task, worker in self.types.items() if task in self.ready.by_task and not is_live(worker))

    def reset_if_empty(self) -> None:
        """Reset the virtual time, tags and polls of a backlog without tasks."""
        if not self.count:
            self.virtual, self.notified_at, self.version = 0.0, 0, ""
            self.idle.clear()
            self.polls.clear()
            self.types.clear()

    def should_notify(self, ready_at: float, now: int) -> bool:
        """
        Return whether to notify the workers of a task that may start at *ready_at*, and record the notification.

        There is none while a worker is expected to poll in time, nor within ``NOTIFY_INTERVAL`` of the previous one.
        """
        if 0 <= now - self.notified_at < NOTIFY_INTERVAL or self.expected_polls(ready_at, now):
            return False
        self.notified_at = now
        return True

    def expected_polls(self, ready_at: float, now: int) -> int:
        """Return how many workers are expected to poll in time for a task that may start at *ready_at*."""
        return sum(now - POLL_GRACE <= at <= max(ready_at, now) + POLL_TOLERANCE for at in self.polls.values())

    def summary(self, name: str) -> TenantSummary:
        """Return the task types of the tenant *name*, in service order, and the ranks of their lanes."""
        tenant = self.tenants[name]
        types = ((task, tuple(sorted(tenant.types[task].lanes))) for task in tenant.service_order())
        return TenantSummary(name, tuple(types))


def refund_path(path: Sequence[Level], cost: float, states: MutableMapping[str, LevelState], now: int) -> None:
    """Refund *cost* tokens to every level of *path*, for a task that was dispatched and has not started."""
    for level in path:
        state = states.get(level.key, EMPTY)
        if max(state.full_at, state.debt_at) > now:
            # Under the stored limit, not that of *path*: the limit may have changed since the tokens were taken.
            states[level.key] = state.refunded(now, cost)
