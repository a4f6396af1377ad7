"""
Fair dispatch of the parked tasks of one queue, and the schedule of the workers' polls.

A worker polls for as many tasks as it has free slots. A dispatch serves the ready tenants in the order of their tags:
start-time fair queueing, see ``backlog.py``. Each task takes its tokens when it is dispatched.

The reply tells the worker when to poll again. Several workers are spread over the start times ahead,
``WORKERS_PER_POLL`` for each. If a task may start and no worker is expected to poll, the workers are notified.

``store/lua/dispatch.lua`` mirrors this file. ``operations/backlog.py`` estimates drain times from the same shares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping

from bucketflow.algorithm.gcra import wait_for
from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import LevelState, current_state
from bucketflow_celery.scheduling.backlog import POLL_GRACE, Backlog, Tenant
from bucketflow_celery.scheduling.model import (
    DispatchedTask,
    DispatchReply,
    DispatchRequest,
    Lane,
    LeasedTask,
    ParkedTask,
    TaskSpec,
    TenantSpec,
    TenantSummary,
)
from bucketflow_celery.scheduling.ready_tenants import by_score

__all__ = ["MAX_TENANTS", "PAUSED_DELAY", "SPARE_TENANTS", "WORKERS_PER_POLL", "dispatch"]

#: µs for which a tenant is delayed if all its task types are paused. A resume makes it ready at once.
PAUSED_DELAY = 60 * SECOND
#: Workers that poll for the same start time, because one of them may be busy by then.
WORKERS_PER_POLL = 2
#: Most tenants that one dispatch makes ready, and most that it examines.
MAX_TENANTS = 128
#: More µs than any delay.
NO_DELAY = 1 << 53
#: Tenants that a reply names beyond the number of free slots, and delayed tenants that it names.
SPARE_TENANTS = 4


def dispatch(  # noqa: PLR0913 - the keys of the script
    backlog: Backlog,
    request: DispatchRequest,
    owned: MutableMapping[bytes, LeasedTask],
    states: MutableMapping[str, LevelState],
    now: int,
    *,
    version: str = "",
    is_live: Callable[[str], bool] = bool,
) -> tuple[DispatchReply, bool]:
    """
    Dispatch the tasks that are next, as many as the worker has free slots, and take their tokens.

    Args:
        backlog: Backlog of the queue.
        request: Request of the worker.
        owned: Tasks that the worker holds, by uid; the dispatched tasks are added.
        states: State of each level by key.
        now: µs of the store's clock.
        version: Version of the limits. A new one invalidates all delays, so all delayed tenants become ready.
        is_live: Whether a worker has a lease.

    Returns:
        The reply; and whether to notify the workers.
    """
    backlog.polls.pop(request.worker, None)
    if version != backlog.version:
        backlog.delayed = dict.fromkeys(backlog.delayed, 0.0)
        backlog.version = version
    _wake_due(backlog, now)
    _claim(backlog, request, is_live)
    tasks = tuple(sorted(backlog.types))
    unclaimed = tuple(task for task in backlog.unclaimed(is_live) if task in request.other_tasks)
    current = _DispatchPass(backlog, request, states, now)
    current.serve()
    for one in current.dispatched:
        owned[one.owned.item.uid] = one.owned
    for tenant, tag in list(backlog.idle.items()):
        if tag <= backlog.virtual:
            del backlog.idle[tenant]
    backlog.reset_if_empty()
    wait, notify = _schedule_poll(backlog, request, current, now)
    tenants = _next_tenants(backlog, request)
    return DispatchReply(tuple(current.dispatched), wait, tenants, tasks, unclaimed), notify


def _claim(backlog: Backlog, request: DispatchRequest, is_live: Callable[[str], bool]) -> None:
    """Record that the worker can run the parked task types for which no live worker is recorded."""
    for task in request.tasks:
        if task in backlog.types and not is_live(backlog.types[task]):
            backlog.types[task] = request.worker


def _wake_due(backlog: Backlog, now: int) -> None:
    due = [name for name, ready_at in by_score(backlog.delayed) if ready_at <= now]
    for name in due[:MAX_TENANTS]:
        backlog.wake(name)


def _schedule_poll(
    backlog: Backlog, request: DispatchRequest, current: _DispatchPass, now: int
) -> tuple[int | None, bool]:
    """Return the µs until the worker polls again, if it does; and whether to notify the workers instead."""
    for worker, poll_at in list(backlog.polls.items()):
        if poll_at < now - POLL_GRACE:
            del backlog.polls[worker]
    ready_at: float | None = current.ready_at
    if ready_at is None:
        ready_at = min(backlog.delayed.values(), default=None)
    if current.admitted >= request.free:
        return None, ready_at is not None and backlog.should_notify(ready_at, now)
    if current.incomplete:
        return 0, False
    # A notified worker has polled, and no task may start now: the next parked task needs a new notification.
    backlog.notified_at = 0
    if ready_at is None:
        return None, False
    poll_at = _poll_time(backlog, ready_at, current.interval, now)
    backlog.polls[request.worker] = poll_at
    return max(0, math.ceil(poll_at - now)), False


def _poll_time(backlog: Backlog, ready_at: float, interval: float, now: int) -> float:
    """
    Return when a worker with free slots polls again, in µs: behind the polls that are expected already.

    Args:
        backlog: Backlog of the queue.
        ready_at: When the next task may start, in µs.
        interval: µs between two start times, if a level of the whole queue refused; 0 if tenants are delayed.
        now: µs of the store's clock.
    """
    if backlog.expected_polls(ready_at, now) < WORKERS_PER_POLL:
        return ready_at
    ahead = len(backlog.polls) // WORKERS_PER_POLL
    if interval == 0 and ahead:
        delayed = by_score(backlog.delayed)
        return max(ready_at, delayed[ahead][1] if ahead < len(delayed) else now + SECOND)
    return ready_at + ahead * interval


def _next_tenants(backlog: Backlog, request: DispatchRequest) -> tuple[TenantSummary, ...]:
    tasks = [task for task in backlog.types if task not in request.other_tasks]
    names = backlog.ready.first(tasks, request.free + SPARE_TENANTS)
    names += [name for name, _ in by_score(backlog.delayed)[:SPARE_TENANTS]]
    return tuple(backlog.summary(name) for name in names)


class _DispatchPass:
    """
    One pass over the ready tenants, from the lowest tag on.

    Attributes:
        dispatched: Tasks that were dispatched, in order.
        admitted: How many of them took their tokens.
        incomplete: Whether the pass stopped at a task type, tenant or lane that the request does not name.
        ready_at: When the next task may start, in µs, if a level of the whole queue refused or slots ran out.
        interval: µs in which the refusing level of the whole queue earns the cost of the next task.
    """

    def __init__(
        self, backlog: Backlog, request: DispatchRequest, states: MutableMapping[str, LevelState], now: int
    ) -> None:
        self._backlog = backlog
        self._free = request.free
        self._tasks = request.tasks
        self._is_complete = backlog.types.keys() <= {*request.tasks, *request.other_tasks}
        self._common = request.common
        self._candidates = {candidate.tenant: candidate for candidate in request.candidates}
        self._states = states
        self._now = now
        self.dispatched: list[DispatchedTask] = []
        self.admitted = 0
        self.incomplete = False
        self.ready_at: int | None = None
        self.interval = 0.0

    def serve(self) -> None:
        """Serve tenants until the slots are used, a level of the whole queue refuses, or the request is incomplete."""
        examined = 0
        if not self._is_complete:
            self._stop_incomplete()
            return
        while self.admitted < self._free and examined < MAX_TENANTS:
            examined += 1
            name = next(iter(self._backlog.ready.first(self._tasks, 1)), None)
            if name is None:
                break
            candidate = self._candidates.get(name)
            if candidate is None:
                self._stop_incomplete()
                break
            delay = self._serve_tenant(name, self._backlog.tenants[name], candidate)
            if self.ready_at is not None:
                break
            if delay > 0:
                self._backlog.delay(name, self._tasks, self._now + delay)
        has_more = self.admitted >= self._free or examined >= MAX_TENANTS
        if self.ready_at is None and has_more and self._backlog.ready.first(self._tasks, 1):
            self.ready_at = self._now + self._longest_wait(self._common, 1.0)

    def _serve_tenant(self, name: str, tenant: Tenant, candidate: TenantSpec) -> int:
        """Serve one task. Return 0, or the µs for which to delay the types that this worker can run."""
        types = {kind.task: kind for kind in candidate.types}
        delay = NO_DELAY
        for task in tenant.service_order():
            if task not in self._tasks or not self._backlog.ready.has(task, name):
                continue
            kind = types.get(task)
            rank = min(tenant.types[task].lanes)
            if kind is None or rank not in kind.ranks:
                self._stop_incomplete()
                return 0
            wait = PAUSED_DELAY if kind.paused else self._serve_type(name, tenant, candidate, kind, rank)
            if wait == 0 or self.ready_at is not None:
                return 0
            delay = min(delay, wait)
        return delay

    def _serve_type(self, name: str, tenant: Tenant, candidate: TenantSpec, kind: TaskSpec, rank: int) -> int:
        """Serve the first task of one type. Return 0, or the µs until the limits of tenant and type allow it."""
        lane, item = Lane(name, kind.task, rank), tenant.types[kind.task].lanes[rank][0]
        own = tuple(level for level in (candidate.level, kind.level) if level is not None)
        path = (*self._common, *own)
        if 0 < item.deadline <= self._now or any(item.cost > level.limit.capacity for level in path):
            self._dispatch_head(tenant, lane, admitted=False)
            return 0
        wait = self._longest_wait(own, item.cost)
        if wait > 0:
            return wait
        for level in self._common:
            common_wait = self._wait_at(level, item.cost)
            if self._now + common_wait > (self.ready_at or self._now):
                self.ready_at = self._now + common_wait
                self.interval = item.cost * SECOND / level.limit.fill_rate
        if self.ready_at is not None:
            return 0
        self._charge(lane, item, tenant, path, candidate.weight)
        self._dispatch_head(tenant, lane, admitted=True)
        return 0

    def _charge(self, lane: Lane, item: ParkedTask, tenant: Tenant, path: tuple[Level, ...], weight: float) -> None:
        """Take the tokens of every level of *path*, and move the tenant behind the others by cost / weight."""
        for level in path:
            state = current_state(level, self._states, self._now)
            self._states[level.key] = state.taken(level.limit, self._now, item.cost)
        self._backlog.virtual = tenant.tag
        self._backlog.set_tag(lane.tenant, tenant.tag + item.cost / weight)
        tenant.turn += 1
        tenant.types[lane.task].turn = tenant.turn
        self.admitted += 1

    def _dispatch_head(self, tenant: Tenant, lane: Lane, *, admitted: bool) -> None:
        item = self._backlog.pop_head(lane, tenant)
        message = self._backlog.messages[item.uid]
        self.dispatched.append(DispatchedTask(LeasedTask(self._backlog.queue, lane, item), message, admitted))

    def _stop_incomplete(self) -> None:
        self.incomplete = True
        self.ready_at = self._now

    def _longest_wait(self, path: tuple[Level, ...], cost: float) -> int:
        return max((self._wait_at(level, cost) for level in path), default=0)

    def _wait_at(self, level: Level, cost: float) -> int:
        state = current_state(level, self._states, self._now)
        return wait_for(level.limit, state.full_at, self._now, cost)
