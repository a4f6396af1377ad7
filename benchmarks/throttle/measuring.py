"""A workload on a fleet of workers, the figures computed from its start times, and the report."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery
from rich.console import Console
from rich.table import Table

from benchmarks.server import redis_server
from benchmarks.throttle.workers import TASKS, Fleet
from bucketflow import testing
from bucketflow.limit import Limit
from bucketflow_celery.demo.processes import wait_until

#: Messages per call of :meth:`Run.send_many`.
_BATCH = 1000


@dataclass(frozen=True)
class Row:
    """
    One line of the report.

    Attributes:
        workload: The workload.
        shown: The measured figures.
        required: The required figures.
        ok: Whether the measured figures meet them.
    """

    workload: str
    shown: str
    required: str
    ok: bool


class Run:
    """
    One workload on one fleet.

    Args:
        fleet: The workers.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.records = redis.Redis(port=fleet.port, db=3, decode_responses=True)
        self.app = Celery("bench", broker=f"redis://127.0.0.1:{fleet.port}/0")
        for db in range(4):
            redis.Redis(port=fleet.port, db=db).flushdb()

    def send(self, count: int, tenant: str | None = None, task: str = "work", **options: Any) -> list[str]:  # noqa: ANN401
        """Publish *count* tasks at once; return their ids."""
        args, queue = [tenant, *options.pop("args", ())], options.pop("queue", "celery")
        with self.app.producer_or_acquire() as producer:
            return [
                self.app.send_task(f"{TASKS}.{task}", args, queue=queue, producer=producer).id for _ in range(count)
            ]

    def send_many(self, count: int, tenants: Sequence[str], task: str = "work", args: Sequence[Any] = ()) -> None:
        """Publish *count* tasks of alternating tenants: one of each by Celery, the others as copies of its message."""
        broker = redis.Redis(port=self.fleet.port, db=0)
        patterns = []
        for tenant in tenants:
            self.app.send_task(f"{TASKS}.{task}", [tenant, *args], queue="bench-copies")
            patterns.append(json.loads(broker.lpop("bench-copies")))
        for begin in range(0, count, _BATCH):
            copies = [_copy(patterns[at % len(patterns)]) for at in range(begin, min(count, begin + _BATCH))]
            broker.lpush("celery", *copies)

    def starts(self, tenant: str | None = None) -> list[float]:
        """Return the start times so far, sorted, in seconds since the Unix epoch."""
        records = [record.split() for record in self.records.lrange("starts", 0, -1)]
        return sorted(float(at) for at, owner in records if tenant is None or owner == tenant)

    def wait_for_starts(self, count: int, timeout: float) -> None:
        """Wait until *count* tasks have started."""
        wait_until(lambda: self.records.llen("starts") >= count, timeout)
        time.sleep(0.5)

    def done(self) -> int:
        """Return how many ``noop`` tasks have ended."""
        return int(self.records.get("done") or 0)

    def deliveries(self) -> int:
        """Return how many deliveries the workers have received."""
        return int(self.records.llen("deliveries"))

    def counters(self) -> Counter[str]:
        """Return the counters of the workers' throttles, summed."""
        answers = self.app.control.inspect(timeout=5, limit=self.fleet.workers).stats() or {}
        if len(answers) < self.fleet.workers:
            raise RuntimeError("not every worker replies")
        total: Counter[str] = Counter()
        for stats in answers.values():
            counters = stats["throttle"]
            del counters["waiting_by_level"]  # a mapping, which no benchmark needs
            total.update(counters)
        return total


def _copy(pattern: Mapping[str, Any]) -> str:
    """Return a copy of a message of kombu with a new task id and delivery tag."""
    task_id, headers, properties = str(uuid.uuid4()), pattern["headers"], pattern["properties"]
    return json.dumps(
        {
            **pattern,
            "headers": {**headers, "id": task_id, "root_id": task_id},
            "properties": {
                **properties,
                "correlation_id": task_id,
                "delivery_tag": str(uuid.uuid4()),
                "delivery_info": {**properties["delivery_info"], "routing_key": "celery"},
            },
        }
    )


def limit(capacity: float, fill_rate: float) -> dict[str, float]:
    """Return a limit as a mapping that JSON can represent."""
    return {"capacity": capacity, "fill_rate": fill_rate}


def utilisation(starts: Sequence[float], capacity: float, fill_rate: float) -> float:
    """Return the share of the limit that was used between the first start and the last."""
    return (len(starts) - capacity) / fill_rate / (starts[-1] - starts[0])


def worst_excess(starts: Sequence[float], capacity: float, fill_rate: float) -> float:
    """Return by how many tasks the worst time window exceeds the limit; negative if none does."""
    return testing.worst_excess([(at, 1.0) for at in starts], Limit(capacity, fill_rate))


def report(rows: Mapping[str, Callable[[int], Row]], names: Sequence[str]) -> int:
    """Measure the named rows, or all; return 1 if a row misses its requirement, 2 if there is no such row."""
    unknown = [name for name in names if name not in rows]
    if unknown:
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(rows)}", file=sys.stderr)
        return 2
    table = Table("workload", "measured", "required", "ok", title="2 prefork workers of 4, Redis", show_lines=True)
    failed = 0
    for name in names or rows:
        with redis_server() as port:
            row = rows[name](port)
        failed += not row.ok
        table.add_row(row.workload, row.shown, row.required, "yes" if row.ok else "NO")
        print(f"{row.workload}: {row.shown} (required: {row.required}): {'yes' if row.ok else 'NO'}", flush=True)
    Console(width=160).print(table)
    return min(1, failed)
