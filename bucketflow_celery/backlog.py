"""
The tasks parked of one queue, and whose turn it is: weighted fair queueing. Pure: no clock, no store, no Celery.

Every tenant has a tag, the virtual time at which its next task may start. Whoever has the lowest is served, and its tag
moves on by ``cost / weight``; the virtual time of the queue is the tag of who was served last. A newcomer begins there,
so it is served soon and gets nothing for the time before. A tenant that its own limit holds up sleeps, and the others
use its share. Within a tenant task types take turns; within a type the line is first come, first served, by rank.

Source: start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996).
``lua/backlog.lua`` and the scripts behind it mirror this file; a property test plays the same stories to both.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from bucketflow.core import refund, take, wait_for
from bucketflow.limit import SECOND, Limit
from bucketflow_celery.admission import EMPTY, LevelState, current_state
from bucketflow_celery.limits import Level

__all__ = [
    "FULL",
    "KNOWN",
    "MEMORY",
    "PAUSE",
    "Backlog",
    "Candidate",
    "Handed",
    "Item",
    "Known",
    "Lane",
    "Owned",
    "Parcel",
    "Released",
    "Request",
    "Settlement",
    "TaskType",
    "give_back",
]

#: µs after which a tenant is looked at again all of whose tasks are paused. Whoever resumes them wakes it.
PAUSE = 60 * SECOND
#: µs by which a worker may miss its turn before it is taken for one that does not come.
NO_SHOW = 50_000
#: µs by which the next worker to come may be too late without another being called.
TOLERANCE = 10_000
#: µs between two calls at least: those who are called need a moment to answer.
QUIET = 20_000
#: Workers that are told the same turn: one may be busy by then.
PER_TURN = 2
#: Most tenants woken, and most heads looked at, by one call.
MOST = 128
#: Candidates named beyond those that were asked for.
SPARE = 4
#: µs after which nobody remembers a message any more that its broker may still deliver again.
MEMORY = 86_400 * SECOND
#: Refused: the backlog is full. Known: it is parked already. Both in place of a position.
FULL, KNOWN = -1, 0


class Lane(NamedTuple):
    """One line of parked tasks: of a tenant (``""`` for none), a task type, and a rank, the lowest first."""

    tenant: str
    task: str
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Item:
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
class Owned:
    """A task that was handed to a worker: where it came from, and goes back to if the worker dies."""

    queue: str
    lane: Lane
    item: Item


@dataclass(frozen=True, slots=True)
class TaskType:
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
class Candidate:
    """
    What a worker says about one tenant that may be next.

    Attributes:
        tenant: Its name; ``""``: the tasks without one.
        types: Its task types, as far as the worker knows.
        weight: Its share relative to others. Above 0.
        level: Its limit, if any.
    """

    tenant: str
    types: tuple[TaskType, ...]
    weight: float = 1.0
    level: Level | None = None


@dataclass(frozen=True, slots=True)
class Parcel:
    """
    One message that is to be parked.

    Attributes:
        uid: What identifies it, also when the broker delivers it a second time.
        lane: Where it waits.
        message: Body, headers, properties and delivery info, as bytes.
        cost: Tokens its task takes at every level. Above 0.
        patience: µs from now until it is given up; 0: never.
        redelivered: Whether a worker had it before.
    """

    uid: bytes
    lane: Lane
    message: bytes
    cost: float = 1.0
    patience: int = 0
    redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Settlement:
    """
    What became of tasks of one queue that were handed to a worker.

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


class Known(NamedTuple):
    """What the store says about one tenant that may be next: its task types, each with the ranks that have lanes."""

    tenant: str
    types: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """
    A worker asks for tasks.

    Attributes:
        worker: Its name.
        free: How many slots it has free.
        common: The levels that all tasks of the queue pass; length 0 to 2, root first.
        candidates: The tenants it knows of. Another that is next ends the release, and is named in the answer.
    """

    worker: str
    free: int
    common: tuple[Level, ...] = ()
    candidates: tuple[Candidate, ...] = ()

    def path_of(self, lane: Lane) -> tuple[Level, ...]:
        """Return the levels that the tasks of *lane* pass, root first."""
        candidate = next(one for one in self.candidates if one.tenant == lane.tenant)
        own = (candidate.level, next(kind.level for kind in candidate.types if kind.task == lane.task))
        return (*self.common, *(level for level in own if level is not None))


@dataclass(frozen=True, slots=True)
class Handed:
    """
    One task that now belongs to the worker.

    Attributes:
        owned: The task.
        message: As it was parked.
        admitted: Whether tokens were taken. If not it must not start: its deadline has passed, or its cost is above
            a capacity.
    """

    owned: Owned
    message: bytes
    admitted: bool


@dataclass(frozen=True, slots=True)
class Released:
    """
    The answer to a :class:`Request`.

    Attributes:
        handed: The tasks, in the order in which they are to start.
        wait: µs until asking again is worth while; ``None``: not before this worker is called, or has a free slot.
        next: Who may be next.
    """

    handed: tuple[Handed, ...]
    wait: int | None
    next: tuple[Known, ...]


@dataclass(slots=True)
class _Type:
    turn: int
    lanes: dict[int, deque[Item]] = field(default_factory=dict)


@dataclass(slots=True)
class _Tenant:
    tag: float
    turn: int = 0
    cost: float = 0.0
    types: dict[str, _Type] = field(default_factory=dict)

    def turns(self) -> list[str]:
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
        self.tenants: dict[str, _Tenant] = {}
        self.ready: dict[str, float] = {}
        self.asleep: dict[str, float] = {}
        self.resting: dict[str, float] = {}
        self.turns: dict[str, float] = {}
        self.unconfirmed: dict[bytes, int] = {}
        self.virtual = 0.0
        self.count = 0
        self.called_at = 0
        self.version = ""

    def blocks(self, tenant: str, now: int) -> bool:
        """Return whether a fresh task of *tenant* would overtake somebody."""
        return tenant in self.tenants or bool(self.ready) or any(wake <= now for wake in self.asleep.values())

    def park(self, parcels: Sequence[Parcel], limit: int, now: int, *, busy: bool) -> tuple[list[int], bool]:
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
            if parcel.uid in self.messages or parcel.uid in self.unconfirmed:
                positions.append(KNOWN)
            elif self.count >= limit:
                positions.append(FULL)
            else:
                self.messages[parcel.uid] = parcel.message
                self.unconfirmed[parcel.uid] = now
                deadline = now + parcel.patience if parcel.patience else 0
                item = Item(parcel.uid, now + stored, parcel.cost, deadline, parcel.redelivered)
                positions.append(self._enter(parcel.lane, item))
                stored += 1
        for uid, at in list(self.unconfirmed.items()) if stored else ():
            if at > now - MEMORY:
                break
            del self.unconfirmed[uid]
        return positions, stored > 0 and busy and self._call(now, now)

    def release(
        self,
        request: Request,
        owned: MutableMapping[bytes, Owned],
        states: MutableMapping[str, LevelState],
        now: int,
        version: str = "",
    ) -> tuple[Released, bool]:
        """
        Hand out the tasks whose turn it is, as many as the worker has free slots, and take their tokens.

        Args:
            request: Of the worker.
            owned: What it was handed before; what it is handed now is added.
            states: Of the levels, by key.
            now: µs of the store's clock.
            version: Of the limits. Under others than before nobody knows any more how long to sleep: all wake.

        Returns:
            The answer; and whether to call other workers.
        """
        self.turns.pop(request.worker, None)
        if version != self.version:
            self.asleep = dict.fromkeys(self.asleep, 0.0)
            self.version = version
        self._wake(now)
        round_ = _Round(self, request, states, now)
        round_.serve()
        for one in round_.handed:
            owned[one.owned.item.uid] = one.owned
        for tenant, tag in list(self.resting.items()):
            if tag <= self.virtual:
                del self.resting[tenant]
        self._tidy()
        wait, call = self._arrange(request, round_, now)
        return Released(tuple(round_.handed), wait, self._next(request.free + round_.skipped)), call

    def purge(self, lane: Lane) -> int:
        """Forget what is parked in *lane*; return how many tasks that were."""
        tenant = self.tenants.get(lane.tenant)
        kind = tenant.types.get(lane.task) if tenant is not None else None
        if tenant is None or kind is None or lane.rank not in kind.lanes:
            return 0
        items = list(kind.lanes[lane.rank])
        for item in items:
            del self.messages[item.uid]
            self.shrink(lane, tenant)
        self._tidy()
        return len(items)

    def put_back(self, owned: Owned) -> None:
        """Let a task stand in front of its lane again."""
        self._enter(owned.lane, owned.item, front=True)

    def lanes(self) -> Iterator[tuple[Lane, deque[Item]]]:
        """Yield every lane with its items, the tenants in any order, their task types in that of their turns."""
        for name, tenant in self.tenants.items():
            for task in tenant.turns():
                for rank, line in sorted(tenant.types[task].lanes.items()):
                    yield Lane(name, task, rank), line

    def call_soon(self, now: int) -> bool:
        """Return whether to call a worker, because something can be handed out now."""
        return self._call(now, now)

    def _enter(self, lane: Lane, item: Item, *, front: bool = False) -> int:
        tenant = self.tenants.get(lane.tenant)
        if tenant is None:
            tag = max(self.virtual, self.resting.pop(lane.tenant, 0.0))
            tenant = self.tenants[lane.tenant] = _Tenant(tag)
            self.ready[lane.tenant] = tag
        kind = tenant.types.get(lane.task)
        first = front or kind is None or lane.rank < min(kind.lanes)
        if first and lane.tenant in self.asleep:  # it sleeps because of others than this one
            self._rouse(lane.tenant)
        if kind is None:
            tenant.turn += 1
            kind = tenant.types[lane.task] = _Type(tenant.turn)
        line = kind.lanes.setdefault(lane.rank, deque())
        if front:
            line.appendleft(item)
        else:
            line.append(item)
        tenant.cost += item.cost
        self.count += 1
        return len(line)

    def shrink(self, lane: Lane, tenant: _Tenant) -> Item:
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
            self.asleep.pop(lane.tenant, None)
            self.resting[lane.tenant] = tenant.tag
        return item

    def _wake(self, now: int) -> None:
        due = [name for name, wake in _in_order(self.asleep) if wake <= now]
        for name in due[:MOST]:
            self._rouse(name)

    def _rouse(self, name: str) -> None:
        del self.asleep[name]
        tenant = self.tenants[name]
        tenant.tag = max(self.virtual, tenant.tag)
        self.ready[name] = tenant.tag

    def _tidy(self) -> None:
        """Forget everything once there is nothing."""
        if not self.count:
            self.virtual, self.called_at, self.version = 0.0, 0, ""
            self.resting.clear()
            self.turns.clear()

    def _arrange(self, request: Request, round_: _Round, now: int) -> tuple[int | None, bool]:
        """Decide when the worker comes again, and whether another must be called in its place."""
        for worker, turn in list(self.turns.items()):
            if turn < now - NO_SHOW:
                del self.turns[worker]
        ready_at: float | None = round_.ready_at
        if ready_at is None:
            ready_at = min((*self.asleep.values(), *round_.later), default=None)
        if round_.admitted >= request.free:
            return None, ready_at is not None and self._call(ready_at, now)
        if round_.unknown:
            return 0, False
        self.called_at = (
            0  # whoever was called has come, and has left nothing: for what is parked next it is called again
        )
        if ready_at is None:
            return None, False
        comes_at = self._turn(ready_at, round_.gap, now)
        self.turns[request.worker] = comes_at
        return max(0, math.ceil(comes_at - now)), False

    def _turn(self, ready_at: float, gap: float, now: int) -> float:
        """Return when a worker comes again that has free slots: after those who come before it, as many at a time."""
        ahead = len(self.turns) // PER_TURN
        if gap == 0 and ahead:
            later = _in_order(self.asleep)
            return max(ready_at, later[ahead][1] if ahead < len(later) else now + SECOND)
        return ready_at + ahead * gap

    def _call(self, ready_at: float, now: int) -> bool:
        if 0 <= now - self.called_at < QUIET or self._coming(ready_at, now):
            return False
        self.called_at = now
        return True

    def _coming(self, ready_at: float, now: int) -> bool:
        """Return whether a worker comes in time for what can be handed out at *ready_at*."""
        return any(now - NO_SHOW <= turn <= max(ready_at, now) + TOLERANCE for turn in self.turns.values())

    def _next(self, count: int) -> tuple[Known, ...]:
        names = [name for name, _ in _in_order(self.ready)[: count + SPARE]]
        names += [name for name, _ in _in_order(self.asleep)[:SPARE]]
        return tuple(self.known(name) for name in names)

    def known(self, name: str) -> Known:
        """Return the task types of the tenant *name*, in the order of their turns, and the ranks of their lanes."""
        tenant = self.tenants[name]
        return Known(name, tuple((kind, tuple(sorted(tenant.types[kind].lanes))) for kind in tenant.turns()))


class _Round:
    """The work of one release."""

    def __init__(self, backlog: Backlog, request: Request, states: MutableMapping[str, LevelState], now: int) -> None:
        self._backlog = backlog
        self._free = request.free
        self._common = request.common
        self._candidates = {candidate.tenant: candidate for candidate in request.candidates}
        self._states = states
        self._now = now
        self.handed: list[Handed] = []
        self.admitted = 0
        self.skipped = 0
        self.unknown = False
        self.ready_at: int | None = None
        self.later: list[int] = []
        self.gap = 0.0

    def serve(self) -> None:
        looked = 0
        while self.admitted < self._free and looked < MOST:
            looked += 1
            heads = _in_order(self._backlog.ready)
            if len(heads) <= self.skipped:
                break
            name = heads[self.skipped][0]
            candidate = self._candidates.get(name)
            if candidate is None:
                self._stop_unknown()
                break
            wait = self._serve_tenant(name, self._backlog.tenants[name], candidate)
            if self.ready_at is not None:
                break
            if wait is None:
                self.skipped += 1
            elif wait > 0:
                del self._backlog.ready[name]
                self._backlog.asleep[name] = self._now + wait
        has_more = self.admitted >= self._free or (looked >= MOST and self.skipped < MOST)
        if self.ready_at is None and self._backlog.ready and has_more:
            self.ready_at = self._now + max((self._wait(level, 1.0) for level in self._common), default=0)

    def _serve_tenant(self, name: str, tenant: _Tenant, candidate: Candidate) -> int | None:
        """Serve one task; return 0, or the µs the tenant must sleep; ``None`` if the rest is for other workers."""
        types = {kind.task: kind for kind in candidate.types}
        sleep: int | None = None
        is_for_others = False
        for task in tenant.turns():
            kind = types.get(task)
            rank = min(tenant.types[task].lanes)
            if kind is None or rank not in kind.ranks:
                self._stop_unknown()
                return 0
            if not kind.known:
                is_for_others = True
                continue
            wait = PAUSE if kind.paused else self._serve_type(name, tenant, candidate, kind, rank)
            if wait == 0 or self.ready_at is not None:
                return 0
            sleep = wait if sleep is None else min(sleep, wait)
        if is_for_others and sleep is not None:  # whoever knows the rest need not wait so long
            self.later.append(self._now + sleep)
            return None
        return sleep

    def _serve_type(self, name: str, tenant: _Tenant, candidate: Candidate, kind: TaskType, rank: int) -> int:
        item = tenant.types[kind.task].lanes[rank][0]
        own = [level for level in (candidate.level, kind.level) if level is not None]
        path = (*self._common, *own)
        if 0 < item.deadline <= self._now or any(item.cost > level.limit.capacity for level in path):
            self._hand(tenant, Lane(name, kind.task, rank), admitted=False)
            return 0
        wait = max((self._wait(level, item.cost) for level in own), default=0)
        if wait > 0:
            return wait
        for level in self._common:
            dry = self._wait(level, item.cost)
            if self._now + dry > (self.ready_at or self._now):
                self.ready_at = self._now + dry
                self.gap = item.cost * SECOND / level.limit.fill_rate
        if self.ready_at is not None:
            return 0
        for level in path:
            state = self._state(level)
            full_at = take(level.limit, state.full_at, self._now, item.cost)
            self._states[level.key] = replace(state, full_at=full_at)
        self._backlog.virtual = tenant.tag
        tenant.tag += item.cost / candidate.weight
        self._backlog.ready[name] = tenant.tag
        tenant.turn += 1
        tenant.types[kind.task].turn = tenant.turn
        self.admitted += 1
        self._hand(tenant, Lane(name, kind.task, rank), admitted=True)
        return 0

    def _hand(self, tenant: _Tenant, lane: Lane, *, admitted: bool) -> None:
        item = self._backlog.shrink(lane, tenant)
        message = self._backlog.messages[item.uid]
        self.handed.append(Handed(Owned(self._backlog.queue, lane, item), message, admitted))

    def _stop_unknown(self) -> None:
        self.unknown = True
        self.ready_at = self._now

    def _wait(self, level: Level, cost: float) -> int:
        return wait_for(level.limit, self._state(level).full_at, self._now, cost)

    def _state(self, level: Level) -> LevelState:
        return current_state(level, self._states, self._now)


def give_back(path: Sequence[Level], cost: float, states: MutableMapping[str, LevelState], now: int) -> None:
    """Put *cost* tokens back into every level of *path*: its task was handed out and has not started."""
    for level in path:
        state = states.get(level.key, EMPTY)
        if state.full_at > now:
            # Under the limit they were last reckoned under, whatever that of *path*: it may have changed meanwhile.
            limit = Limit(state.capacity, state.fill_rate)
            states[level.key] = replace(state, full_at=refund(limit, state.full_at, now, cost))


def _in_order(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return names and scores as a sorted set keeps them: by score, then by the bytes of the name."""
    return sorted(scores.items(), key=lambda item: (item[1], item[0].encode()))
