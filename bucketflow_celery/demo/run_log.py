"""The log of one run: what was sent, delivered and started, and the Redis lists by which workers report it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from redis import Redis

from bucketflow.algorithm.window import Start
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo.environment import Environment
from bucketflow_celery.demo.limits import path_of
from bucketflow_celery.demo.workload import Order

__all__ = ["Recorder", "RunLog"]


@dataclass
class RunLog:
    """
    The events of a run. All times are in seconds since the run began, unless stated otherwise.

    Attributes:
        orders: The tasks to send, by second; length >= 1.
        began_at: When the run began, on the monotonic clock, which all processes of a machine share.
        sent: When each order was sent, by task id.
        starts: When each task started, by task id. A task that ran more than once has more than one time.
        deliveries: How many times a worker received each task, by task id.
    """

    orders: Sequence[Order]
    began_at: float = 0.0
    sent: dict[str, tuple[float, Order]] = field(default_factory=dict)
    starts: dict[str, list[float]] = field(default_factory=dict)
    deliveries: Counter[str] = field(default_factory=Counter)

    @cached_property
    def paths(self) -> dict[tuple[str, str], tuple[Level, ...]]:
        """The levels of the orders, by tenant and task."""
        return {(order.tenant, order.task): path_of(order.tenant, order.task) for order in self.orders}

    @cached_property
    def levels(self) -> list[Level]:
        """Every level on a path: first the queue, then the tenants, then the tasks."""
        found = {level.key: level for path in self.paths.values() for level in path}
        names = ("all", "queue", "tenant", "task")
        return sorted(found.values(), key=lambda level: (names.index(level.name), level.key))

    def ids(self, level: Level) -> list[str]:
        """Return the ids of the tasks sent so far that *level* limits."""
        return [id_ for id_, (_, order) in self.sent.items() if level in self.paths[order.tenant, order.task]]

    def started(self, level: Level) -> list[Start]:
        """Return the starts below *level*, sorted by time."""
        return sorted(Start(at, self.sent[id_][1].cost) for id_ in self.ids(level) for at in self.starts.get(id_, ()))

    def waiting(self, level: Level) -> int:
        """Return how many tasks below *level* were sent and have not started."""
        return sum(id_ not in self.starts for id_ in self.ids(level))

    def deliveries_per_task(self, level: Level) -> float:
        """Return the deliveries per task below *level*; 0 before the first task."""
        ids = self.ids(level)
        return sum(self.deliveries[id_] for id_ in ids) / len(ids) if ids else 0.0

    @property
    def lost(self) -> int:
        """The number of tasks that were sent and have not started."""
        return sum(id_ not in self.starts for id_ in self.sent)

    @property
    def repeated(self) -> int:
        """The number of tasks that started more than once."""
        return sum(len(times) > 1 for times in self.starts.values())

    @property
    def complete(self) -> bool:
        """Whether every order was sent and has started."""
        return len(self.sent) == len(self.orders) and not self.lost


class Recorder:
    """
    Redis lists that the workers append to and the demo reads.

    Args:
        environment: Where the lists are.
    """

    def __init__(self, environment: Environment) -> None:
        self._client = Redis.from_url(environment.url, decode_responses=True)
        names = ("starts", "deliveries", "ready")
        self._starts, self._deliveries, self._ready = (f"{environment.prefix}{name}" for name in names)
        self._read = [0, 0]

    def record_start(self, task_id: str, at: float) -> None:
        """Record that a task started; *at* in seconds of the monotonic clock."""
        self._client.rpush(self._starts, f"{task_id} {at!r}")

    def record_delivery(self, task_id: str) -> None:
        """Record that a worker received a task."""
        self._client.rpush(self._deliveries, task_id)

    def record_ready(self) -> None:
        """Record that a worker is ready."""
        self._client.incr(self._ready)

    @property
    def ready_workers(self) -> int:
        """The number of workers that are ready."""
        return int(self._client.get(self._ready) or 0)

    def read_into(self, log: RunLog) -> None:
        """Add the new records of the tasks that *log* has sent to *log*."""
        reading: Any = self._client.pipeline(transaction=False)
        reading.lrange(self._starts, self._read[0], -1).lrange(self._deliveries, self._read[1], -1)
        starts, deliveries = reading.execute()
        self._read = [self._read[0] + len(starts), self._read[1] + len(deliveries)]
        for record in starts:
            task_id, at = record.split()
            if task_id in log.sent:
                log.starts.setdefault(task_id, []).append(float(at) - log.began_at)
        log.deliveries.update(task_id for task_id in deliveries if task_id in log.sent)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()
