"""What was sent and what became of it: the facts of a run, and the questions one may ask of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bucketflow.algorithm.window import Start
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo.limits import path_of
from bucketflow_celery.demo.workload import Order

__all__ = ["Ledger"]


@dataclass
class Ledger:
    """
    A run, as seen by whoever sends the tasks. All times are in seconds since it began.

    Attributes:
        orders: What is to be sent, by second; length >= 1.
        began: Its second 0, on the monotonic clock: that is one for all processes of a machine.
        sent: When each order was sent, by task id.
        starts: When each task started, by task id; more than one time if it ran more than once.
        deliveries: How often a worker received each task, by task id.
    """

    orders: Sequence[Order]
    began: float = 0.0
    sent: dict[str, tuple[float, Order]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    deliveries: Counter[str] = field(default_factory=Counter)

    @cached_property
    def paths(self) -> dict[tuple[str, str], tuple[Level, ...]]:
        """The levels that the orders pass, by tenant and task."""
        return {(order.tenant, order.task): path_of(order.tenant, order.task) for order in self.orders}

    @cached_property
    def levels(self) -> list[Level]:
        """Every level on a path: the queue, then the tenants, then the tasks."""
        found = {level.key: level for path in self.paths.values() for level in path}
        names = ("all", "queue", "tenant", "task")
        return sorted(found.values(), key=lambda level: (names.index(level.name), level.key))

    def ids(self, level: Level) -> list[str]:
        """Return the ids of the tasks sent so far that pass *level*."""
        return [id_ for id_, (_, order) in self.sent.items() if level in self.paths[order.tenant, order.task]]

    def started(self, level: Level) -> list[Start]:
        """Return what has started below *level*, in the order of time."""
        return sorted(Start(at, self.sent[id_][1].cost) for id_ in self.ids(level) for at in self.starts.get(id_, ()))

    def waiting(self, level: Level) -> int:
        """Return how many tasks below *level* were sent and have not started."""
        return sum(id_ not in self.starts for id_ in self.ids(level))

    def per_task(self, level: Level) -> float:
        """Return deliveries per task below *level*; 0 before the first."""
        ids = self.ids(level)
        return sum(self.deliveries[id_] for id_ in ids) / len(ids) if ids else 0.0

    @property
    def lost(self) -> int:
        """Tasks that were sent and never started."""
        return sum(id_ not in self.starts for id_ in self.sent)

    @property
    def repeated(self) -> int:
        """Tasks that started more than once."""
        return sum(len(times) > 1 for times in self.starts.values())

    @property
    def complete(self) -> bool:
        """Whether every order was sent and has started."""
        return len(self.sent) == len(self.orders) and not self.lost
