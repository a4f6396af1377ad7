"""How long a call takes in one process: a thread, four, a coroutine; one level and three; admitted and refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from comparison.contestant import DRY, Contestant, Racer, racer, refusing, task_racer, threaded_racer
from comparison.in_memory import ASYNC, OURS, SYNC
from comparison.results import Row
from comparison.rows import raced


def rows(sync: Sequence[Contestant] = SYNC, asynchronous: Sequence[Contestant] = ASYNC, rounds: int = 9) -> list[Row]:
    """Measure the rows."""
    event_loop = asyncio.new_event_loop()
    deep = racer(replace(OURS, name=f"{OURS.name}, 3 levels"), levels=3)
    table = [
        raced("memory-1", "1 thread, 1 level", sync, racer, also=[deep], rounds=rounds),
        raced("memory-1-deep", "1 thread, 3 levels", sync, partial(racer, levels=3), rounds=rounds),
        raced("memory-4", "4 threads, 1 level", sync, partial(threaded_racer, threads=4), rounds=rounds),
        raced(
            "memory-4-deep", "4 threads, 3 levels", sync, partial(threaded_racer, threads=4, levels=3), rounds=rounds
        ),
    ]

    def in_loop(one: Contestant, levels: int = 1) -> Racer:
        return task_racer(one, event_loop, levels=levels)

    def no_in_loop(one: Contestant) -> Racer:
        return task_racer(refusing(one), event_loop, size=DRY)

    def no(one: Contestant) -> Racer:
        return racer(refusing(one), DRY)

    table += [
        raced("memory-asyncio", "asyncio, 1 level", asynchronous, in_loop, rounds=rounds),
        raced("memory-asyncio-deep", "asyncio, 3 levels", asynchronous, partial(in_loop, levels=3), rounds=rounds),
        raced("memory-refused", "1 thread, refused", sync, no, rounds=rounds, refused=True),
        raced("memory-asyncio-refused", "asyncio, refused", asynchronous, no_in_loop, rounds=rounds, refused=True),
    ]  # fmt: skip
    event_loop.close()
    return table
