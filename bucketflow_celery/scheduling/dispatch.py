"""
Whose turn it is among the parked tasks of one queue, and who comes for the next. Pure.

``lua/dispatch.lua`` mirrors this file; see ``backlog.py``.
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import replace

from bucketflow.algorithm.gcra import take, wait_for
from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import LevelState, current_state
from bucketflow_celery.scheduling.backlog import POLL_GRACE, Backlog, Tenant, by_score
from bucketflow_celery.scheduling.model import (
    DispatchedTask,
    DispatchReply,
    DispatchRequest,
    Lane,
    LeasedTask,
    TaskSpec,
    TenantSpec,
    TenantSummary,
)

__all__ = ["PAUSE", "dispatch"]

#: µs after which a tenant is looked at again all of whose tasks are paused. Whoever resumes them wakes it.
PAUSE = 60 * SECOND
#: Workers that are told the same turn: one may be busy by then.
WORKERS_PER_POLL = 2
#: Most tenants woken, and most heads looked at, by one call.
MOST = 128
#: Candidates named beyond those that were asked for.
SPARE = 4


def dispatch(  # noqa: PLR0913 - what a script has as its keys
    backlog: Backlog,
    request: DispatchRequest,
    owned: MutableMapping[bytes, LeasedTask],
    states: MutableMapping[str, LevelState],
    now: int,
    *,
    version: str = "",
) -> tuple[DispatchReply, bool]:
    """
    Hand out the tasks whose turn it is, as many as the worker has free slots, and take their tokens.

    Args:
        backlog: Of the queue.
        request: Of the worker.
        owned: What it was dispatched before; what it is dispatched now is added.
        states: Of the levels, by key.
        now: µs of the store's clock.
        version: Of the limits. Under others than before nobody knows any more how long to sleep: all wake.

    Returns:
        The answer; and whether to call other workers.
    """
    backlog.polls.pop(request.worker, None)
    if version != backlog.version:
        backlog.delayed = dict.fromkeys(backlog.delayed, 0.0)
        backlog.version = version
    _wake(backlog, now)
    round_ = _Round(backlog, request, states, now)
    round_.serve()
    for one in round_.dispatched:
        owned[one.owned.item.uid] = one.owned
    for tenant, tag in list(backlog.idle.items()):
        if tag <= backlog.virtual:
            del backlog.idle[tenant]
    backlog.reset_if_empty()
    wait, call = _arrange(backlog, request, round_, now)
    return DispatchReply(tuple(round_.dispatched), wait, _next(backlog, request.free + round_.skipped)), call


def _wake(backlog: Backlog, now: int) -> None:
    due = [name for name, wake in by_score(backlog.delayed) if wake <= now]
    for name in due[:MOST]:
        backlog.wake(name)


def _arrange(backlog: Backlog, request: DispatchRequest, round_: _Round, now: int) -> tuple[int | None, bool]:
    """Decide when the worker comes again, and whether another must be called in its place."""
    for worker, turn in list(backlog.polls.items()):
        if turn < now - POLL_GRACE:
            del backlog.polls[worker]
    ready_at: float | None = round_.ready_at
    if ready_at is None:
        ready_at = min((*backlog.delayed.values(), *round_.later), default=None)
    if round_.admitted >= request.free:
        return None, ready_at is not None and backlog.should_notify(ready_at, now)
    if round_.unknown:
        return 0, False
    # Whoever was called has come, and has left nothing: for what is parked next it is called again.
    backlog.notified_at = 0
    if ready_at is None:
        return None, False
    comes_at = _turn(backlog, ready_at, round_.gap, now)
    backlog.polls[request.worker] = comes_at
    return max(0, math.ceil(comes_at - now)), False


def _turn(backlog: Backlog, ready_at: float, gap: float, now: int) -> float:
    """Return when a worker comes again that has free slots: after those who come before it, as many at a time."""
    if backlog.expected_polls(ready_at, now) < WORKERS_PER_POLL:
        return ready_at
    ahead = len(backlog.polls) // WORKERS_PER_POLL
    if gap == 0 and ahead:
        later = by_score(backlog.delayed)
        return max(ready_at, later[ahead][1] if ahead < len(later) else now + SECOND)
    return ready_at + ahead * gap


def _next(backlog: Backlog, count: int) -> tuple[TenantSummary, ...]:
    names = [name for name, _ in by_score(backlog.ready)[: count + SPARE]]
    names += [name for name, _ in by_score(backlog.delayed)[:SPARE]]
    return tuple(backlog.known(name) for name in names)


class _Round:
    """The work of one dispatch."""

    def __init__(
        self, backlog: Backlog, request: DispatchRequest, states: MutableMapping[str, LevelState], now: int
    ) -> None:
        self._backlog = backlog
        self._free = request.free
        self._common = request.common
        self._candidates = {candidate.tenant: candidate for candidate in request.candidates}
        self._states = states
        self._now = now
        self.dispatched: list[DispatchedTask] = []
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
            heads = by_score(self._backlog.ready)
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
                self._backlog.delayed[name] = self._now + wait
        has_more = self.admitted >= self._free or (looked >= MOST and self.skipped < MOST)
        if self.ready_at is None and self._backlog.ready and has_more:
            self.ready_at = self._now + max((self._wait(level, 1.0) for level in self._common), default=0)

    def _serve_tenant(self, name: str, tenant: Tenant, candidate: TenantSpec) -> int | None:
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

    def _serve_type(self, name: str, tenant: Tenant, candidate: TenantSpec, kind: TaskSpec, rank: int) -> int:
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

    def _hand(self, tenant: Tenant, lane: Lane, *, admitted: bool) -> None:
        item = self._backlog.pop_head(lane, tenant)
        message = self._backlog.messages[item.uid]
        self.dispatched.append(DispatchedTask(LeasedTask(self._backlog.queue, lane, item), message, admitted))

    def _stop_unknown(self) -> None:
        self.unknown = True
        self.ready_at = self._now

    def _wait(self, level: Level, cost: float) -> int:
        return wait_for(level.limit, self._state(level).full_at, self._now, cost)

    def _state(self, level: Level) -> LevelState:
        return current_state(level, self._states, self._now)
