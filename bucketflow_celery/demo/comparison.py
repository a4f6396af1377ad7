"""The second scenario: a noisy tenant and a quiet one share a queue, once with ``on_limit="retry"``, once with park."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from bucketflow_celery.demo.limits import MODES, NOISY, QUIET, path_of
from bucketflow_celery.demo.run_log import RunLog
from bucketflow_celery.demo.workload import Order

__all__ = ["FULL", "QUICK", "Comparison", "Load", "comparison_orders"]

#: Seconds by which a busy machine may delay a tenant that gets its fair share.
TOLERANCE = 1.0


class Load(NamedTuple):
    """
    What each mode is sent.

    Attributes:
        noisy_tasks: Tasks of the noisy tenant, all sent at the start.
        quiet_tasks: Tasks of the quiet tenant.
        quiet_after: When those are sent, in seconds since the start.
    """

    noisy_tasks: int
    quiet_tasks: int
    quiet_after: float


FULL = Load(noisy_tasks=160, quiet_tasks=20, quiet_after=1.5)

#: Long enough to run every part of the demo, too short to show a large difference.
QUICK = Load(noisy_tasks=40, quiet_tasks=8, quiet_after=0.5)


def comparison_orders(load: Load = FULL) -> list[Order]:
    """Return the orders of the scenario, sorted by second. Both modes get the same load; they alternate."""
    waves = ((0.0, NOISY, load.noisy_tasks), (load.quiet_after, QUIET, load.quiet_tasks))
    return [Order(at, tenant, mode, 1.0) for at, tenant, count in waves for _ in range(count) for mode in MODES]


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    The result of the load under one ``on_limit`` mode, to compare with the other's.

    Attributes:
        on_limit: The mode.
        tasks: The number of tasks in the load, by tenant.
        sent_at: When the first task was sent, by tenant, in seconds.
        starts: When each task first started, by tenant, in seconds; sorted.
        deliveries: Deliveries per task.
    """

    on_limit: str
    tasks: Counter[str]
    sent_at: dict[str, float]
    starts: dict[str, list[float]]
    deliveries: float

    @classmethod
    def all_of(cls, log: RunLog) -> list[Comparison]:
        """Return the results so far of a run of :func:`comparison_orders`, one for each of :data:`MODES`."""
        return [cls.of(log, on_limit) for on_limit in MODES]

    @classmethod
    def of(cls, log: RunLog, on_limit: str) -> Comparison:
        """Return the result so far of one mode."""
        tasks = Counter(order.tenant for order in log.orders if order.task == on_limit)
        sent = {tenant: dict(_sent(log, on_limit, tenant)) for tenant in (NOISY, QUIET)}
        sent_at = {tenant: min(times.values(), default=0.0) for tenant, times in sent.items()}
        starts = {
            tenant: sorted(log.starts[id_][0] for id_ in ids if id_ in log.starts) for tenant, ids in sent.items()
        }
        (queue,) = path_of(QUIET, on_limit)
        return cls(on_limit, tasks, sent_at, starts, log.deliveries_per_task(queue))

    def duration(self, tenant: str) -> float:
        """Return the seconds from a tenant's first sending to its last start; infinite if a task has not started."""
        starts = self.starts[tenant]
        return starts[-1] - self.sent_at[tenant] if len(starts) == self.tasks[tenant] else math.inf

    def describe_duration(self, tenant: str) -> str:
        """Return :meth:`duration` for display."""
        duration = self.duration(tenant)
        return f"after {duration:.1f} s" if math.isfinite(duration) else "never"

    @property
    def fair_duration(self) -> float:
        """Seconds in which the quiet tenant's tasks start if it gets half of the queue's rate."""
        (queue,) = path_of(QUIET, self.on_limit)
        return 2 * self.tasks[QUIET] / queue.limit.fill_rate

    @property
    def broken(self) -> list[str]:
        """The broken promises, for display; empty for retry, which promises no fair share."""
        if self.on_limit != "park" or self.duration(QUIET) <= self.fair_duration + TOLERANCE:
            return []
        done, fair = self.describe_duration(QUIET), self.fair_duration
        return [f"with park tenant {QUIET} was done {done}, by its fair share after {fair:.1f} s"]


def _sent(log: RunLog, on_limit: str, tenant: str) -> Iterator[tuple[str, float]]:
    for id_, (at, order) in log.sent.items():
        if (order.task, order.tenant) == (on_limit, tenant):
            yield id_, at
