"""How long a call takes through Redis: threads that share a client, tasks that share a client, one level and three."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace

from workers import redis_server

from comparison.contestant import Contestant, Racer, racer, task_racer, threaded_racer
from comparison.redis_limiters import Place, in_tasks, lease_in_tasks, threaded, threaded_lease
from comparison.results import OURS, Row
from comparison.rows import raced

ROUNDS = 7
SLICE = 0.05
#: Where 64 callers share a slice, each must come often enough.
LONG_SLICE = 0.1

_DEEP = f"{OURS}, 3 levels"


@contextmanager
def _place() -> Iterator[Place]:
    with redis_server() as port, closing(Place(port)) as place:
        yield place


def threads() -> list[Row]:
    """Measure threads."""
    with _place() as place:
        return [*thread_rows(threaded(place)), *lease_rows(place)]


def tasks() -> list[Row]:
    """Measure tasks."""
    with _place() as place:
        return task_rows(place, in_tasks(place))


def without_hiredis() -> list[Row]:
    """Measure some of both where redis-py finds no hiredis."""
    with _place() as place:
        rows = [
            *thread_rows(threaded(place), ((1, 1), (16, 1))),
            *task_rows(place, in_tasks(place), ((1, 1, 1), (64, 1, 1), (64, 64, 1))),
        ]
    return [replace(row, key=f"pure-{row.key}", title=f"{row.title}, without hiredis") for row in rows]


def thread_rows(
    contestants: Sequence[Contestant],
    shapes: Sequence[tuple[int, int]] = ((1, 1), (1, 3), (4, 1), (16, 1), (16, 3)),
    rounds: int = ROUNDS,
    slice_seconds: float = SLICE,
) -> list[Row]:
    """Measure so many threads at so many levels, as *shapes* says."""
    table = []
    for count, levels in shapes:

        def ready(one: Contestant, count: int = count, levels: int = levels) -> Racer:
            return racer(one, levels=levels) if count == 1 else threaded_racer(one, count, levels)

        key = f"redis-{count}" + ("-deep" if levels > 1 else "")
        title = f"{_counted(count, 'thread')}, {_counted(levels, 'level')}"
        also = [replace(ready(one, levels=3), name=_DEEP) for one in contestants if one.name == OURS and levels == 1]
        timing = {"rounds": rounds, "slice_seconds": slice_seconds}
        table.append(raced(key, title, contestants, ready, also=also, **timing))
    return table


def task_rows(
    place: Place,
    contestants: Sequence[Contestant],
    shapes: Sequence[tuple[int, int, int]] = ((1, 1, 1), (1, 1, 3), (64, 1, 1), (64, 1, 3), (64, 64, 1)),
    rounds: int = ROUNDS,
    slice_seconds: float = LONG_SLICE,
) -> list[Row]:
    """Measure so many tasks on so many buckets at so many levels, as *shapes* says."""
    table = []
    for count, buckets, levels in shapes:

        def ready(one: Contestant, count: int = count, buckets: int = buckets, levels: int = levels) -> Racer:
            return task_racer(one, place.event_loop, count, buckets, levels=levels)

        key = f"redis-asyncio-{count}-on-{buckets}" + ("-deep" if levels > 1 else "")
        where = f" on {_counted(buckets, 'bucket')}" if count > 1 else ""
        title = f"asyncio, {_counted(count, 'caller')}{where}, {_counted(levels, 'level')}"
        table.append(raced(key, title, contestants, ready, rounds=rounds, slice_seconds=slice_seconds))
    return table


def lease_rows(place: Place, rounds: int = ROUNDS, slice_seconds: float = SLICE) -> list[Row]:
    """Measure what a lease saves, for a thread and for a task."""
    floor, ours = ([one for one in threaded(place) if one.role == role][:1] for role in ("floor", "ours"))
    thread = [*floor, *ours, threaded_lease(place)]
    floor, ours = ([one for one in in_tasks(place) if one.role == role][:1] for role in ("floor", "ours"))
    task = [*floor, *ours, lease_in_tasks(place)]
    timing = {"rounds": rounds, "slice_seconds": slice_seconds}
    return [
        raced("redis-lease", "1 thread, lease=100", thread, racer, **timing),
        raced(
            "redis-asyncio-lease",
            "asyncio, 1 caller, lease=100",
            task,
            lambda one: task_racer(one, place.event_loop),
            **timing,
        ),
    ]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")
