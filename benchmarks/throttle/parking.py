"""A fleet that parks, for the benchmarks of ``on_limit="park"``, and the figures that each of them must show."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks.throttle.measuring import Run, utilisation, worst_excess
from benchmarks.throttle.workers import Fleet
from bucketflow_celery import Throttle
from bucketflow_celery.demo.processes import wait_until

LOG = Path(os.environ["BENCH_LOG"]).resolve() if "BENCH_LOG" in os.environ else None
QUEUE = "celery"


@contextmanager
def parking(port: int, limits: Mapping[str, Any], **options: Any) -> Iterator[tuple[Run, Throttle]]:  # noqa: ANN401
    """Start workers that park; yield their run, and a throttle of the same limits for the benchmark's own calls."""
    fleet = Fleet(port, "park", limits, log=LOG, **options)
    run = Run(fleet)
    ours = Throttle(
        Celery("ours"), url=f"redis://127.0.0.1:{port}/1", limits=limits, on_limit="park", tenant="tenant", timeout=10
    )
    fleet.start()
    try:
        yield run, ours
    finally:
        ours.close()
        fleet.stop()


def parked(ours: Throttle) -> int:
    """Return how many tasks are parked."""
    backlog = ours.backlog().get(QUEUE)
    return 0 if backlog is None else backlog.count


@contextmanager
def paused(ours: Throttle) -> Iterator[None]:
    """Pause the queue inside the block."""
    ours.pause(queue=QUEUE)
    yield
    ours.resume(queue=QUEUE)


def wait_parked(ours: Throttle, count: int, timeout: float) -> None:
    """
    Wait until *count* tasks are parked.

    Raises:
        RuntimeError: They are not after *timeout* seconds.
    """
    if not wait_until(lambda: parked(ours) >= count, timeout, pause=0.2):
        raise RuntimeError(f"{parked(ours)} of {count} tasks are parked")


@dataclass(frozen=True)
class Totals:
    """
    The figures that every workload must show beside its own.

    Attributes:
        shown: The measured figures.
        ok: Whether they meet :attr:`required`.
    """

    shown: str
    ok: bool

    required = "utilisation >= 0.99, worst window <= +1, 1 delivery and 1 dispatch a task"

    @classmethod
    def of(cls, run: Run, count: int, capacity: float, fill_rate: float) -> Totals:
        """Compare the records of the tasks with the counters of the workers and their throttles."""
        starts, deliveries = run.starts(), run.deliveries()
        counters = run.counters()
        dispatched, parked = counters["dispatched"], counters["parked"]
        direct = counters["admitted"] - dispatched
        used, excess = utilisation(starts, capacity, fill_rate), worst_excess(starts, capacity, fill_rate)
        return cls(
            f"utilisation {used:.4f}, worst window {excess:+.2f}; {len(starts)} starts of {count}, "
            f"{deliveries} deliveries, {parked} parked, {dispatched} dispatched + {direct} started at once",
            used >= 0.99
            and excess <= 1
            and len(starts) == count == deliveries == dispatched + direct
            and dispatched == parked
            and counters["store_errors"] == 0,
        )
