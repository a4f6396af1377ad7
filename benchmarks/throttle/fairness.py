"""
Parking under load: fair shares, nothing lost, and a cost that does not grow with the number of parked tasks.

Two prefork workers of four processes on one Redis. Run it on a quiet machine, from the root of the repository:
``python -m benchmarks.throttle.fairness [row ...]``. ``BENCH_LOG=file`` keeps the workers' warnings and errors.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from benchmarks.throttle.large_backlog import large_backlog
from benchmarks.throttle.measuring import Row, Run, limit, report
from benchmarks.throttle.parking import QUEUE, Totals, parking, paused, wait_parked
from benchmarks.throttle.worker_kills import worker_kills
from benchmarks.throttle.workers import Fleet
from bucketflow_celery.demo.processes import wait_until


def newcomer(port: int) -> Row:
    """Send tasks of tenant B while A has a long backlog; compare with ``self.retry(countdown=wait)``."""
    capacity, fill_rate = 10.0, 50.0
    allowed = limit(capacity, fill_rate)

    def serve(run: Run, task: str) -> float:
        begin = time.time()
        run.send(1000, "A", task)
        time.sleep(max(0.0, begin + 4 - time.time()))
        sent_at = time.time()
        run.send(50, "B", task)
        wait_until(lambda: len(run.starts("B")) >= 50, 60)
        served = run.starts("B")
        return served[-1] - sent_at if len(served) == 50 else float("inf")

    with parking(port, {"queues": {QUEUE: allowed}}) as (run, _):
        took = serve(run, "work")
        run.wait_for_starts(1050, 60)
        totals = Totals.of(run, 1050, capacity, fill_rate)
    fleet = Fleet(port, "plain retry", allowed)
    run = Run(fleet)
    fleet.start()
    try:
        plain = serve(run, "retrying")
    finally:
        fleet.kill()
    return Row(
        "1000 tasks of A at 50/s, capacity 10; after 4 s 50 tasks of B",
        f"B done in {took:.2f} s (plain self.retry: {plain:.1f} s); {totals.shown}",
        f"B done in <= 2.5 s; {totals.required}",
        took <= 2.5 and totals.ok,
    )


@dataclass(frozen=True)
class Shares:
    """
    How tenants whose backlogs began together were served.

    Attributes:
        starts: The start times of each tenant, sorted.
        weights: The weights that are not 1.
        totals: The other figures.
    """

    starts: Mapping[str, Sequence[float]]
    weights: Mapping[str, float]
    totals: Totals

    def ends(self) -> list[float]:
        """Return when each tenant's backlog ended, sorted."""
        return sorted(starts[-1] for starts in self.starts.values())

    def service(self, after: float, until: float) -> dict[str, float]:
        """Return the starts per weight of each tenant that had a backlog all the time."""
        return {
            tenant: sum(after < at <= until for at in starts) / self.weights.get(tenant, 1)
            for tenant, starts in self.starts.items()
            if starts[-1] >= until
        }


def shares(port: int, backlogs: Mapping[str, int], weights: Mapping[str, float], fill_rate: float) -> Shares:
    """Park all *backlogs*, then start them together and return how they were served."""
    capacity, count = 10.0, sum(backlogs.values())
    with parking(port, {"queues": {QUEUE: limit(capacity, fill_rate)}, "weights": weights}) as (run, ours):
        with paused(ours):
            for tenant, tasks in backlogs.items():
                run.send_many(tasks, [tenant])
            wait_parked(ours, count, 60)
        run.wait_for_starts(count, 2 * count / fill_rate)
        totals = Totals.of(run, count, capacity, fill_rate)
        return Shares({tenant: run.starts(tenant) for tenant in backlogs}, weights, totals)


def jain(shares: Sequence[float]) -> float:
    """Return Jain's fairness index: 1 if all shares are equal, 1/n if one tenant has everything."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def tenants(port: int) -> Row:
    """Serve ten tenants, the largest with a hundred times the work of the smallest."""
    sizes = [10, 20, 40, 70, 120, 200, 320, 500, 700, 1000]
    served = shares(port, {f"t{size}": size for size in sizes}, {}, 100.0)
    ends = served.ends()
    index = jain([*served.service(0, ends[0]).values()])
    later = min(jain([*served.service(after, until).values()]) for after, until in pairwise(ends[:-1]))
    return Row(
        f"10 tenants, backlogs from 10 to 1000, equal weights, {sum(sizes)} tasks at 100/s",
        f"Jain's index {index:.4f} until the first backlog ended, >= {later:.4f} from each end to the next; "
        f"{served.totals.shown}",
        f">= 0.99; {served.totals.required}",
        min(index, later) >= 0.99 and served.totals.ok,
    )


def weights(port: int) -> Row:
    """Serve three tenants of different weights."""
    given = {"a": 5.0, "b": 3.0, "c": 1.0}
    served = shares(port, {"a": 1200, "b": 900, "c": 400}, given, 100.0)
    service = served.service(0, served.ends()[0])
    ideal = mean(service.values())
    worst = max(abs(one / ideal - 1) for one in service.values())
    counts = " : ".join(f"{service[tenant] * weight:.0f}" for tenant, weight in given.items())
    return Row(
        "weights 5 : 3 : 1, 2500 tasks at 100/s",
        f"{counts} until the first backlog ended, {worst:.2%} off at most; {served.totals.shown}",
        f"within 3 %; {served.totals.required}",
        worst <= 0.03 and served.totals.ok,
    )


ROWS: dict[str, Callable[[int], Row]] = {
    "newcomer": newcomer,
    "tenants": tenants,
    "weights": weights,
    "many": large_backlog,
    "killed-late": lambda port: worker_kills(port, acks_late=True),
    "killed-early": lambda port: worker_kills(port, acks_late=False),
}

if __name__ == "__main__":
    sys.exit(report(ROWS, sys.argv[1:]))
