"""The parts of a run: each in a process of its own, each under a minute."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from comparison import results


@dataclass(frozen=True)
class Part:
    """
    Some rows.

    Attributes:
        module: In this folder; its ``rows()`` measures them.
        function: Its name, where it is another.
        hiredis: Whether redis-py may find hiredis, which it uses for every connection once it is there.
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
    """Measure a part here and keep what it finds."""
    part = PARTS[name]
    if not part.hiredis:
        if "redis" in sys.modules:
            raise RuntimeError("redis-py has looked for hiredis already")
        sys.modules["hiredis"] = None  # how an import is told that it fails
    rows = getattr(import_module(f"comparison.{part.module}"), part.function)()
    results.save(name, rows)
    return rows
