"""Rows of the time of a call through Redis: threads and tasks that share a client, one level and three."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from benchmarks.library.implementation import Implementation, runner, task_runner, threaded_runner
from benchmarks.library.redis_limiters import Database, for_tasks, for_threads, leased_for_tasks, leased_for_threads
from benchmarks.library.results import OURS, Row
from benchmarks.library.rows import measure_row
from benchmarks.library.timing import Runner
from benchmarks.server import redis_server

ROUNDS = 7
SLICE = 0.05
#: Longer, so that each of 64 callers makes enough calls in a slice.
LONG_SLICE = 0.1

_DEEP = f"{OURS}, 3 levels"


@contextmanager
def _database() -> Iterator[Database]:
    with redis_server() as port, closing(Database(port)) as database:
        yield database


def threads() -> list[Row]:
    """Measure threads that share a client."""
    with _database() as database:
        return [*thread_rows(for_threads(database)), *lease_rows(database)]


def tasks() -> list[Row]:
    """Measure asyncio tasks that share a client."""
    with _database() as database:
        return task_rows(database, for_tasks(database))


def without_hiredis() -> list[Row]:
    """Measure some rows of both while redis-py cannot import hiredis."""
    with _database() as database:
        rows = [
            *thread_rows(for_threads(database), ((1, 1), (16, 1))),
            *task_rows(database, for_tasks(database), ((1, 1, 1), (64, 1, 1), (64, 64, 1))),
        ]
    return [replace(row, key=f"pure-{row.key}", title=f"{row.title}, without hiredis") for row in rows]


def thread_rows(
    implementations: Sequence[Implementation],
    shapes: Sequence[tuple[int, int]] = ((1, 1), (1, 3), (4, 1), (16, 1), (16, 3)),
    rounds: int = ROUNDS,
    slice_seconds: float = SLICE,
) -> list[Row]:
    """Measure one row for each of *shapes*: the number of threads and of levels."""
    table = []
    for count, levels in shapes:

        def prepare(one: Implementation, count: int = count, levels: int = levels) -> Runner:
            return runner(one, levels=levels) if count == 1 else threaded_runner(one, count, levels)

        key = f"redis-{count}" + ("-deep" if levels > 1 else "")
        title = f"{_counted(count, 'thread')}, {_counted(levels, 'level')}"
        also = [
            replace(prepare(one, levels=3), name=_DEEP) for one in implementations if one.name == OURS and levels == 1
        ]
        timing = {"rounds": rounds, "slice_seconds": slice_seconds}
        table.append(measure_row(key, title, implementations, prepare, also=also, **timing))
    return table


def task_rows(
    database: Database,
    implementations: Sequence[Implementation],
    shapes: Sequence[tuple[int, int, int]] = ((1, 1, 1), (1, 1, 3), (64, 1, 1), (64, 1, 3), (64, 64, 1)),
    rounds: int = ROUNDS,
    slice_seconds: float = LONG_SLICE,
) -> list[Row]:
    """Measure one row for each of *shapes*: the number of tasks, of buckets and of levels."""
    table = []
    for count, buckets, levels in shapes:

        def prepare(one: Implementation, count: int = count, buckets: int = buckets, levels: int = levels) -> Runner:
            return task_runner(one, database.event_loop, count, buckets, levels=levels)

        key = f"redis-asyncio-{count}-on-{buckets}" + ("-deep" if levels > 1 else "")
        where = f" on {_counted(buckets, 'bucket')}" if count > 1 else ""
        title = f"asyncio, {_counted(count, 'caller')}{where}, {_counted(levels, 'level')}"
        table.append(measure_row(key, title, implementations, prepare, rounds=rounds, slice_seconds=slice_seconds))
    return table


def lease_rows(database: Database, rounds: int = ROUNDS, slice_seconds: float = SLICE) -> list[Row]:
    """Measure the gain of a lease, for a thread and for a task."""
    baseline, ours = ([one for one in for_threads(database) if one.role == role][:1] for role in ("baseline", "ours"))
    thread = [*baseline, *ours, leased_for_threads(database)]
    baseline, ours = ([one for one in for_tasks(database) if one.role == role][:1] for role in ("baseline", "ours"))
    task = [*baseline, *ours, leased_for_tasks(database)]
    timing = {"rounds": rounds, "slice_seconds": slice_seconds}
    return [
        measure_row("redis-lease", "1 thread, lease=100", thread, runner, **timing),
        measure_row(
            "redis-asyncio-lease",
            "asyncio, 1 caller, lease=100",
            task,
            lambda one: task_runner(one, database.event_loop),
            **timing,
        ),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")
