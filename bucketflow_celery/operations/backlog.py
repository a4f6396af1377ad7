"""
Backlog report: per queue and tenant the number of parked tasks, the age of the oldest, and the estimated drain time.

:meth:`bucketflow_celery.Throttle.backlog` returns it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level, LevelName
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.store.interfaces import BacklogView, LaneView

__all__ = ["QueueBacklog", "TenantBacklog", "backlog_report"]

#: Why the tasks of a queue do not start.
UNSERVED = "no live worker serves the queue"


@dataclass(frozen=True, slots=True)
class TenantBacklog:
    """
    The parked tasks of one tenant in one queue.

    Attributes:
        tenant: The tenant's name; ``""`` for tasks without a tenant.
        count: Number of tasks.
        oldest: Seconds since the oldest of them was parked.
        drain: Estimated seconds until the last of them may start, provided that no task is added and pool slots are
            free; ``inf`` if all of them are paused; ``None`` if no live worker serves the queue.
    """

    tenant: str
    count: int
    oldest: float
    drain: float | None


@dataclass(frozen=True, slots=True)
class QueueBacklog:
    """
    The parked tasks of one queue.

    Attributes:
        queue: The queue's name.
        count: Number of tasks.
        oldest: Seconds since the oldest of them was parked.
        drain: Estimated seconds until the last of them may start: the longest of the tenants'; ``None``: see *reason*.
        tenants: The backlog of each tenant, by the tenant's name.
        unclaimed: Number of tasks by task type, of the types that no live worker can run. They wait until a worker has
            their type, or :meth:`~bucketflow_celery.Throttle.purge` deletes them.
        reason: Why *drain* is ``None``: no live worker serves the queue. The tasks wait until a worker does, or
            :meth:`~bucketflow_celery.Throttle.move` moves them to another queue.
    """

    queue: str
    count: int
    oldest: float
    drain: float | None
    tenants: Mapping[str, TenantBacklog]
    unclaimed: Mapping[str, int] = field(default_factory=dict)
    reason: str | None = None


def backlog_report(
    queue: str, view: BacklogView, table: LimitTable, task_limits: Mapping[str, Limit | None]
) -> QueueBacklog:
    """
    Summarise the backlog of *queue*.

    Args:
        queue: The queue's name.
        view: The queue's lanes and costs, as the store returned them.
        table: The limits and weights in force.
        task_limits: The limits of decorators, by the task's name.
    """
    by_tenant: defaultdict[str, list[LaneView]] = defaultdict(list)
    for lane in view.lanes:
        by_tenant[lane.lane.tenant].append(lane)
    rate = _rate(table.path(queue, None, ""), "all", "queue")
    total, weight = sum(view.costs.values()), sum(map(table.weight, view.costs))
    tenants, longest = {}, 0.0
    for tenant, lanes in sorted(by_tenant.items()):
        cost, count = view.costs[tenant], sum(lane.count for lane in lanes)
        # The tenant gets at least its fair share, and never needs longer than the whole backlog.
        drain = min(total, cost * weight / table.weight(tenant)) / rate
        for task, tasks in _by_task(lanes).items():
            path = table.path(queue, tenant or None, task, task_limits.get(task))
            drain = max(drain, cost / _rate(path, "tenant"), cost * tasks / count / _rate(path, "task"))
        if all(table.pause(queue, tenant or None, lane.lane.task) for lane in lanes):
            drain = inf
        tenants[tenant] = TenantBacklog(tenant, count, _oldest(lanes, view.now), drain if view.is_served else None)
        longest = max(longest, drain)
    return QueueBacklog(
        queue,
        sum(tenant.count for tenant in tenants.values()),
        _oldest(view.lanes, view.now),
        longest if view.is_served else None,
        tenants,
        {task: count for task, count in sorted(_by_task(view.lanes).items()) if task in view.unclaimed},
        None if view.is_served else UNSERVED,
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
