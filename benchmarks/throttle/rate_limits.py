"""
The throttle under load with ``on_limit="retry"``: start times recorded by the tasks, deliveries by ``task_received``.

Two prefork workers of four processes on one Redis. Run it on a quiet machine, from the root of the repository:
``python -m benchmarks.throttle.rate_limits [row ...]``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.throttle.measuring import Row, Run, limit, report, utilisation, worst_excess
from benchmarks.throttle.workers import Fleet
from bucketflow_celery.demo.processes import wait_until


def backlog(port: int, count: int, allowed: tuple[float, float], level: str, max_deliveries: float) -> Row:
    """Send *count* tasks at once under one limit, at the level of the queue or the tenant."""
    capacity, fill_rate = allowed
    limits: dict[str, Any] = {"queues": {"celery": limit(capacity, fill_rate)}}
    if level == "tenant":
        limits = {"queues": {"celery": "1000/s"}, "tenants": {"*": limit(capacity, fill_rate)}}
    fleet = Fleet(port, "throttle", limits)
    run = Run(fleet)
    fleet.start()
    try:
        run.send(count, "acme")
        run.wait_for_starts(count, 3 * count / fill_rate)
        starts, deliveries = run.starts(), run.deliveries() / count
    finally:
        fleet.stop()
    used, excess = utilisation(starts, capacity, fill_rate), worst_excess(starts, capacity, fill_rate)
    return Row(
        f"{count} tasks at once, {level} limit {fill_rate:g}/s, capacity {capacity:g}",
        f"deliveries {deliveries:.2f}, utilisation {used:.4f}, worst window {excess:+.2f}, lost {count - len(starts)}",
        f"<= {max_deliveries}, >= 0.98, <= +1, 0",
        deliveries <= max_deliveries and used >= 0.98 and excess <= 1 and len(starts) == count,
    )


def beside_plain(port: int, level: str) -> Row:
    """Compare deliveries and CPU of the first or third workload with ``self.retry(countdown=wait)``."""
    count, capacity, fill_rate = 300, 5.0, 20.0
    table = {"queues": {"celery": limit(capacity, fill_rate)}}
    if level == "tenant":
        table = {"queues": {"celery": "1000/s"}, "tenants": {"*": limit(capacity, fill_rate)}}  # type: ignore[dict-item]
    figures = {}
    for mode, task, limits in (("throttle", "work", table), ("plain retry", "retrying", limit(capacity, fill_rate))):
        fleet = Fleet(port, mode, limits)
        run = Run(fleet)
        fleet.start()
        try:
            time.sleep(1)
            before = fleet.cpu()
            run.send(count, "acme", task)
            run.wait_for_starts(count, 90)
            figures[mode] = (run.deliveries() / count, (fleet.cpu() - before) / count * 1000, len(run.starts()))
        finally:
            fleet.stop()
    ours, plain = figures["throttle"], figures["plain retry"]
    return Row(
        f"300 tasks, {level} limit 20/s, plain self.retry beside it",
        f"deliveries {ours[0]:.2f} against {plain[0]:.1f}; CPU per task {ours[1]:.1f} ms against {plain[1]:.1f} ms: "
        f"{plain[1] / ours[1]:.1f} times",
        ">= 5 times the CPU",
        plain[1] >= 5 * ours[1],
    )


def three_tenants(port: int) -> Row:
    """Run three tenants below the limit of their queue, one of them with ten times the work."""
    limits = {"a": (5.0, 20.0), "b": (3.0, 10.0), "c": (2.0, 5.0)}
    work = {"a": 400, "b": 40, "c": 40}
    tenants = {name: limit(*pair) for name, pair in limits.items()}
    fleet = Fleet(port, "throttle", {"queues": {"celery": "100/s"}, "tenants": tenants})
    run = Run(fleet)
    fleet.start()
    try:
        for name, count in work.items():
            run.send(count, name)
        run.wait_for_starts(sum(work.values()), 60)
        starts = {name: run.starts(name) for name in work}
        deliveries = run.deliveries() / sum(work.values())
    finally:
        fleet.stop()
    used = {name: utilisation(starts[name], *limits[name]) for name in work}
    excess = {name: worst_excess(starts[name], *limits[name]) for name in work}
    return Row(
        "3 tenants at 20, 10 and 5/s in a queue of 100/s, one with 10 times the work",
        "; ".join(f"{name}: utilisation {used[name]:.3f}, worst window {excess[name]:+.2f}" for name in work)
        + f"; deliveries {deliveries:.2f}",
        "each at its own limit, none over",
        min(used.values()) >= 0.95 and max(excess.values()) <= 1,
    )


def killed(port: int, level: str) -> Row:
    """Kill all workers for 10 s in mid-backlog, then start them again."""
    count, capacity, fill_rate = 300, 5.0, 20.0
    limits: Mapping[str, Any] = {"queues": {"celery": limit(capacity, fill_rate)}}
    if level == "tenant":
        limits = {"queues": {"celery": "1000/s"}, "tenants": {"*": limit(capacity, fill_rate)}}
    fleet = Fleet(port, "throttle", limits, visibility=8)
    run = Run(fleet)
    fleet.start()
    try:
        run.send(count, "acme")
        time.sleep(5)
        fleet.kill()
        killed_at = time.time()
        time.sleep(10)
        fleet.start()
        run.wait_for_starts(count, 90)
        starts = run.starts()
    finally:
        fleet.stop()
    after = [at for at in starts if at > killed_at]
    excess = worst_excess(after, capacity, fill_rate)
    return Row(
        f"all workers killed for 10 s in mid-backlog ({level} limit 20/s)",
        f"started {len(starts)} of {count}, worst window after the restart {excess:+.2f}",
        "nothing lost, <= +1",
        len(starts) >= count and excess <= 1,
    )


def long_tasks(port: int) -> Row:
    """Run tasks of one second on eight slots."""
    fleet = Fleet(port, "throttle", {"queues": {"celery": limit(1, 20)}})
    run = Run(fleet)
    fleet.start()
    try:
        run.send(80, "acme", args=(1.0,))
        run.wait_for_starts(80, 40)
        starts = run.starts()
    finally:
        fleet.stop()
    gap = min(later - earlier for earlier, later in pairwise(starts))
    excess = worst_excess(starts, 1, 20)
    return Row(
        "80 tasks of 1 s on 8 slots, 20/s, capacity 1",
        f"smallest gap {gap * 1000:.1f} ms, worst window {excess:+.3f}",
        "50 ms less the time a start takes: <= +0.1",
        excess <= 0.1,
    )


def exhausted_queue(port: int) -> Row:
    """Run an exhausted queue and an unlimited one on the same workers."""
    fleet = Fleet(port, "throttle", {"queues": {"slow": limit(1, 1)}}, queues=("slow", "fast"))
    run = Run(fleet)
    fleet.start()
    try:
        run.send(500, "slow", queue="slow")
        time.sleep(2)
        begin = time.time()
        run.send(100, "fast", queue="fast")
        wait_until(lambda: len(run.starts("fast")) >= 100, 20)
        took = max(run.starts("fast")) - begin
        inspect = run.app.control.inspect(timeout=2)
        before = Counter({name: stats["throttle"]["round_trips"] for name, stats in inspect.stats().items()})
        time.sleep(10)
        calls = [(stats["throttle"]["round_trips"] - before[name]) / 10 for name, stats in inspect.stats().items()]
    finally:
        fleet.kill()
    return Row(
        "500 tasks of a queue of 1/s and 100 of an unlimited one, same workers",
        f"the 100 done in {took:.2f} s; calls to Redis {max(calls):.1f} a second a worker",
        "<= 2 s, <= 3",
        took <= 2 and max(calls) <= 3,
    )


@dataclass(frozen=True)
class Pace:
    """
    The pace of a fleet.

    Attributes:
        rate: Tasks per second.
        cpu: CPU time of all its processes, in ms per task.
        admissions: Tasks admitted per call to the store; 0 without the throttle.
    """

    rate: float
    cpu: float
    admissions: float


def throughput(port: int, seconds: float) -> Row:
    """Measure a backlog of tasks of *seconds* with and without the throttle, whose limits are not reached."""
    limits = {"all": "100000/s", "queues": {"*": "100000/s"}, "tenants": {"*": "100000/s"}}
    paces: dict[str, list[Pace]] = {"none": [], "throttle": []}
    for number in range(6):
        for mode in sorted(
            paces, reverse=number % 2 == 0
        ):  # the first of a pair finds other conditions than the second
            paces[mode].append(_pace(Fleet(port, mode, limits, count=False), 3000, seconds))
    plain, throttled = paces["none"], paces["throttle"]
    ratio = statistics.median(ours.rate / theirs.rate for ours, theirs in zip(throttled, plain, strict=True))
    return Row(
        f"3000 tasks of {seconds * 1000:g} ms, three limits, none reached",
        f"{_median(throttled, 'rate'):.0f}/s against {_median(plain, 'rate'):.0f}/s without: {ratio:.3f}; CPU per task "
        f"{_median(throttled, 'cpu'):.2f} ms against {_median(plain, 'cpu'):.2f} ms; "
        f"{_median(throttled, 'admissions'):.3f} admissions a round trip",
        ">= 0.95",
        ratio >= 0.95,
    )


def _median(paces: list[Pace], what: str) -> float:
    return statistics.median(getattr(pace, what) for pace in paces)


def _pace(fleet: Fleet, count: int, seconds: float) -> Pace:
    """Return the pace of a fleet on *count* tasks that wait when it starts, measured after the first tenth."""
    run = Run(fleet)
    run.send(count, "acme", "noop", args=(seconds,))
    fleet.start()
    try:
        wait_until(lambda: run.done() >= count // 10, 60)
        begin, cpu, first = time.monotonic(), fleet.cpu(), run.done()
        wait_until(lambda: run.done() >= count, 60)
        done, took, used = run.done() - first, time.monotonic() - begin, fleet.cpu() - cpu
        counters = run.counters() if fleet.mode == "throttle" else {"admitted": 0, "round_trips": 1}
        return Pace(done / took, used / done * 1000, counters["admitted"] / counters["round_trips"])
    finally:
        fleet.stop()


ROWS: dict[str, Callable[[int], Row]] = {
    "queue": lambda port: backlog(port, 300, (5, 20), "queue", 1.1),
    "fast-queue": lambda port: backlog(port, 2000, (20, 200), "queue", 1.1),
    "tenant": lambda port: backlog(port, 300, (5, 20), "tenant", 2.05),
    "plain-queue": lambda port: beside_plain(port, "queue"),
    "plain-tenant": lambda port: beside_plain(port, "tenant"),
    "tenants": three_tenants,
    "killed-queue": lambda port: killed(port, "queue"),
    "killed-tenant": lambda port: killed(port, "tenant"),
    "long": long_tasks,
    "exhausted": exhausted_queue,
    "throughput": lambda port: throughput(port, 0.01),
    "throughput-empty": lambda port: throughput(port, 0.0),
}


if __name__ == "__main__":
    sys.exit(report(ROWS, sys.argv[1:]))
