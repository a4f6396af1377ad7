"""Rows of the time of a call in one process: threads and asyncio, one level and three, admitted and refused."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.library.implementation import (
    EXHAUSTED,
    Implementation,
    refusing,
    runner,
    task_runner,
    threaded_runner,
)
from benchmarks.library.memory_limiters import ASYNC, OURS, SYNC
from benchmarks.library.results import Row
from benchmarks.library.rows import measure_row
from benchmarks.library.timing import Runner


def rows(
    sync: Sequence[Implementation] = SYNC, asynchronous: Sequence[Implementation] = ASYNC, rounds: int = 9
) -> list[Row]:
    """Measure the rows."""
    event_loop = asyncio.new_event_loop()
    deep = runner(replace(OURS, name=f"{OURS.name}, 3 levels"), levels=3)
    table = [
        measure_row("memory-1", "1 thread, 1 level", sync, runner, also=[deep], rounds=rounds),
        measure_row("memory-1-deep", "1 thread, 3 levels", sync, partial(runner, levels=3), rounds=rounds),
        measure_row("memory-4", "4 threads, 1 level", sync, partial(threaded_runner, threads=4), rounds=rounds),
        measure_row(
            "memory-4-deep", "4 threads, 3 levels", sync, partial(threaded_runner, threads=4, levels=3), rounds=rounds
        ),
    ]

    def in_loop(one: Implementation, levels: int = 1) -> Runner:
        return task_runner(one, event_loop, levels=levels)

    def refused_in_loop(one: Implementation) -> Runner:
        return task_runner(refusing(one), event_loop, size=EXHAUSTED)

    def refused(one: Implementation) -> Runner:
        return runner(refusing(one), EXHAUSTED)

    table += [
        measure_row("memory-asyncio", "asyncio, 1 level", asynchronous, in_loop, rounds=rounds),
        measure_row(
            "memory-asyncio-deep", "asyncio, 3 levels", asynchronous, partial(in_loop, levels=3), rounds=rounds
        ),
        measure_row("memory-refused", "1 thread, refused", sync, refused, rounds=rounds, refused=True),
        measure_row(
            "memory-asyncio-refused", "asyncio, refused", asynchronous, refused_in_loop, rounds=rounds, refused=True
        ),
    ]
    event_loop.close()
    return table
