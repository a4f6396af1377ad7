"""Rows of the cost of the throttle in Celery: the same workers with and without it, alternately."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from statistics import median
from typing import Any

from benchmarks.library.results import OURS, Entry, Row
from benchmarks.library.timing import Role
from benchmarks.server import redis_server
from benchmarks.throttle.measuring import Run, limit, utilisation, worst_excess
from benchmarks.throttle.workers import Fleet
from bucketflow_celery.demo.processes import wait_until

#: Limits that are not reached.
AMPLE = {"all": "100000/s", "queues": {"*": "100000/s"}, "tenants": {"*": "100000/s"}}
PLAIN = "Celery alone"
#: Name and role in the tables, by the mode of the fleet.
_MODES: dict[str, tuple[str, Role]] = {"none": (PLAIN, "baseline"), "throttle": (OURS, "ours")}

CAPACITY, FILL_RATE = 5.0, 20.0
_TENANT = {"queues": {"celery": "1000/s"}, "tenants": {"*": limit(CAPACITY, FILL_RATE)}}
#: Mode, name, role, task and limits of the fleets that are measured at a limit.
_LIMITED: Sequence[tuple[str, str, Role, str, Mapping[str, Any]]] = [
    ("throttle", OURS, "ours", "work", _TENANT),
    ("plain retry", "self.retry(countdown=wait)", "baseline", "retrying", limit(CAPACITY, FILL_RATE)),
    ("celery-heimdall", "celery-heimdall", "peer", "watched", {"window": [int(FILL_RATE), 1]}),
]


def tasks_of_10_ms(rounds: int = 4, count: int = 2000) -> list[Row]:
    """Measure tasks of 10 ms, as if they called an external API."""
    return [throughput("celery", "tasks of 10 ms, three limits, none reached", 0.01, rounds, count)]


def empty_tasks(rounds: int = 4, count: int = 2500) -> list[Row]:
    """Measure tasks that do nothing, so that the processors are busy all the time."""
    return [throughput("celery-empty", "empty tasks, three limits, none reached", 0.0, rounds, count)]


def throughput(key: str, title: str, seconds: float, rounds: int, count: int) -> Row:
    """Measure *count* tasks of *seconds* each, sent at once to alternating fleets; medians of the rounds."""
    figures: dict[str, list[dict[str, float]]] = {mode: [] for mode in _MODES}
    with ExitStack() as stack:
        runs = {mode: Run(stack.enter_context(_fleet(mode))) for mode in _MODES}
        for _ in range(rounds):
            for mode, run in runs.items():
                figures[mode].append(_burst(run, count, seconds))
        counters = runs["throttle"].counters()
    entries = []
    for mode, seen in figures.items():
        name, role = _MODES[mode]
        values: dict[str, float | None] = {column: median(one[column] for one in seen) for column in seen[0]}
        if mode == "throttle":
            values["per_trip"] = counters["admitted"] / counters["round_trips"]
            ratios = [ours["rate"] / plain["rate"] for ours, plain in zip(seen, figures["none"], strict=True)]
            values["over_plain"] = median(ratios)
        entries.append(Entry(name, role, values))
        print(f"{title}: {name}", *(f"{column} {value:.4g}" for column, value in values.items()))
    return Row(key, title, entries)


@contextmanager
def _fleet(mode: str) -> Iterator[Fleet]:
    with redis_server() as port:
        fleet = Fleet(port, mode, AMPLE, count=False)
        fleet.start()
        try:
            yield fleet
        finally:
            fleet.stop()


def _burst(run: Run, count: int, seconds: float) -> dict[str, float]:
    """Return the rate and the CPU time of a fleet that runs *count* tasks, measured after the first tenth."""
    before = run.done()
    run.send_many(count, ["acme"], "noop", [seconds])
    wait_until(lambda: run.done() >= before + count // 10, 60)
    begin, first, cpu = time.monotonic(), run.done(), run.fleet.cpu()
    wait_until(lambda: run.done() >= before + count, 60)
    tasks = run.done() - first
    return {"rate": tasks / (time.monotonic() - begin), "cpu_ms": (run.fleet.cpu() - cpu) / tasks * 1000}


def under_a_limit(count: int = 200) -> list[Row]:
    """Measure *count* tasks of one tenant, sent at once, under a limit of 20 a second."""
    entries, left_out = [], {}
    for mode, name, role, task, limits in _LIMITED:
        if mode == name and find_spec(name.replace("-", "_")) is None:
            left_out[name] = "it is not installed"
            continue
        with redis_server() as port:
            values = _limited(Fleet(port, mode, limits), task, count)
        entries.append(Entry(name, role, values))
        print(f"at a limit: {name}", *(f"{column} {value:.4g}" for column, value in values.items()))
    title = f"{count} tasks at once of a tenant with {FILL_RATE:g}/s, capacity {CAPACITY:g}"
    return [Row("celery-limit", title, entries, left_out)]


def _limited(fleet: Fleet, task: str, count: int) -> dict[str, float]:
    run = Run(fleet)
    fleet.start()
    try:
        cpu = fleet.cpu()
        run.send(count, "acme", task)
        run.wait_for_starts(count, 1.8 * count / FILL_RATE)
        starts = run.starts()
        return {
            "deliveries": run.deliveries() / len(starts),
            "cpu_ms": (fleet.cpu() - cpu) / len(starts) * 1000,
            "achieved": utilisation(starts, CAPACITY, FILL_RATE),
            "excess": worst_excess(starts, CAPACITY, FILL_RATE),
            "started": float(len(starts)),
        }
    finally:
        fleet.kill()
