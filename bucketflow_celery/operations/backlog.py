"""What is parked, seen from outside: how much, for how long already, and for how long still. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf

from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level, LevelName
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.store.interfaces import BacklogView, LaneView

__all__ = ["QueueBacklog", "TenantBacklog", "backlog_report"]


@dataclass(frozen=True, slots=True)
class TenantBacklog:
    """
    What is parked of one tenant in one queue.

    Attributes:
        tenant: Its name; ``""``: the tasks without one.
        count: How many tasks.
        oldest: Seconds since the first of them was parked.
        drain: Seconds until the last of them may start, if nothing else comes and there are slots enough.
    """

    tenant: str
    count: int
    oldest: float
    drain: float


@dataclass(frozen=True, slots=True)
class QueueBacklog:
    """
    What is parked of one queue.

    Attributes:
        queue: Its name.
        count: How many tasks.
        oldest: Seconds since the first of them was parked.
        drain: Seconds until the last of them may start, if nothing else comes and there are slots enough.
        tenants: The same by tenant, by name.
    """

    queue: str
    count: int
    oldest: float
    drain: float
    tenants: Mapping[str, TenantBacklog]


def backlog_report(
    queue: str, view: BacklogView, table: LimitTable, task_limits: Mapping[str, Limit | None]
) -> QueueBacklog:
    """
    Sum up what is parked of *queue*.

    Args:
        queue: Its name.
        view: What the store says of it.
        table: The limits.
        task_limits: Those of decorators, by the task's name.
    """
    by_tenant: defaultdict[str, list[LaneView]] = defaultdict(list)
    for lane in view.lanes:
        by_tenant[lane.lane.tenant].append(lane)
    rate = _rate(table.path(queue, None, ""), "all", "queue")
    total, weight = sum(view.costs.values()), sum(map(table.weight, view.costs))
    tenants = {}
    for tenant, lanes in sorted(by_tenant.items()):
        cost, count = view.costs[tenant], sum(lane.count for lane in lanes)
        # By its fair share at first; and all is done when the last has had its tokens.
        drain = min(total, cost * weight / table.weight(tenant)) / rate
        for task, tasks in _by_task(lanes).items():
            path = table.path(queue, tenant or None, task, task_limits.get(task))
            drain = max(drain, cost / _rate(path, "tenant"), cost * tasks / count / _rate(path, "task"))
        if all(table.pause(queue, tenant or None, lane.lane.task) for lane in lanes):
            drain = inf
        tenants[tenant] = TenantBacklog(tenant, count, _oldest(lanes, view.now), drain)
    return QueueBacklog(
        queue,
        sum(tenant.count for tenant in tenants.values()),
        _oldest(view.lanes, view.now),
        max((tenant.drain for tenant in tenants.values()), default=0.0),
        tenants,
    )


def _by_task(lanes: Sequence[LaneView]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for lane in lanes:
        counts[lane.lane.task] += lane.count
    return counts


def _rate(path: Sequence[Level], *names: LevelName) -> float:
    return min((level.limit.fill_rate for level in path if level.name in names), default=inf)


def _oldest(lanes: Sequence[LaneView], now: int) -> float:
    return max((max(0, now - lane.since) for lane in lanes), default=0) / SECOND
