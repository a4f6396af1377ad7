"""The parts of a run. Each takes less than a minute, in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from benchmarks.library import results


@dataclass(frozen=True)
class Part:
    """
    A group of rows.

    Attributes:
        module: The module of this package that measures them.
        function: The function of the module.
        hiredis: Whether redis-py may import hiredis, which it then uses for every connection.
    """

    module: str
    function: str = "rows"
    hiredis: bool = True


PARTS = {
    "memory": Part("memory_rows"),
    "redis": Part("redis_rows", "threads"),
    "redis-asyncio": Part("redis_rows", "tasks"),
    "redis-pure": Part("redis_rows", "without_hiredis", hiredis=False),
    "server": Part("server_time"),
    "waiting-threads": Part("waiting", "threads"),
    "waiting-tasks": Part("waiting", "tasks"),
    "waiting-redis-threads": Part("waiting", "threads_on_redis"),
    "waiting-redis-tasks": Part("waiting", "tasks_on_redis"),
    "outage": Part("outage"),
    "footprint": Part("footprint"),
    "celery": Part("celery_rows", "tasks_of_10_ms"),
    "celery-empty": Part("celery_rows", "empty_tasks"),
    "celery-limit": Part("celery_rows", "under_a_limit"),
}


def run(name: str) -> Sequence[results.Row]:
    """Measure a part in this process, save its rows and return them."""
    part = PARTS[name]
    if not part.hiredis:
        if "redis" in sys.modules:
            raise RuntimeError("redis-py is imported already and has looked for hiredis")
        sys.modules["hiredis"] = None  # makes its import fail
    rows = getattr(import_module(f"benchmarks.library.{part.module}"), part.function)()
    results.save(name, rows)
    return rows
