"""
Rows of eight waiters at 100 tokens a second: how much of the limit they use, how evenly, and the longest wait.

The burst is spent before they start. Each waits again as soon as it has a token, so the fair wait is eight intervals.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from benchmarks.library.implementation import Implementation, Size, prepared
from benchmarks.library.memory_limiters import ASYNC_WAITING, WAITING
from benchmarks.library.redis_limiters import Database, waiting_for_tasks, waiting_for_threads
from benchmarks.library.results import Entry, Row
from benchmarks.library.rows import UNAVAILABLE
from benchmarks.server import redis_server

WAITERS = 8
SIZE = Size(10, 100)
#: The longest wait in seconds if the tokens are granted in FIFO order.
FAIR_WAIT = WAITERS / SIZE.fill_rate
ROUNDS = 3
SECONDS = 2.2
#: Seconds to wait for a waiter after its last call should have returned.
_JOIN_TIMEOUT = 8.0


@dataclass
class Waiter:
    """
    The record of one waiter.

    Attributes:
        served: The time of each token, in seconds.
        waits: The length of each wait, in seconds.
        refused: The number of calls that returned without a token.
        errors: The number of errors, by class name.
        since: The start of the current wait; ``None`` once the waiter has ended.
    """

    served: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    since: float | None = None

    def count(self, *, admitted: bool) -> None:
        """Record the end of a wait."""
        now = time.perf_counter()
        if admitted and self.since is not None:
            self.served.append(now)
            self.waits.append(now - self.since)
        self.refused += not admitted

    def fail(self, error: Exception) -> None:
        """Record an error."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1


@dataclass(frozen=True)
class Round:
    """
    The record of all waiters.

    Attributes:
        began: When the burst was spent, in seconds.
        waiters: The record of each.
    """

    began: float
    waiters: list[Waiter]


Watch = Callable[[Implementation, float], Round]


def threads(rounds: int = ROUNDS, seconds: float = SECONDS) -> list[Row]:
    """Measure threads in memory."""
    return [row("waiting-threads", "8 threads, in memory", WAITING, by_threads, rounds, seconds)]


def tasks(rounds: int = ROUNDS, seconds: float = SECONDS) -> list[Row]:
    """Measure asyncio tasks in memory."""
    return [
        row("waiting-tasks", "8 tasks, in memory", ASYNC_WAITING, by_tasks(asyncio.new_event_loop()), rounds, seconds)
    ]


def threads_on_redis(rounds: int = ROUNDS, seconds: float = SECONDS) -> list[Row]:
    """Measure threads that share a client."""
    with redis_server() as port:
        implementations = waiting_for_threads(Database(port))
        return [row("waiting-redis-threads", "8 threads, Redis", implementations, by_threads, rounds, seconds)]


def tasks_on_redis(rounds: int = ROUNDS, seconds: float = SECONDS) -> list[Row]:
    """Measure asyncio tasks that share a client."""
    with redis_server() as port, closing(Database(port)) as database:
        watch = by_tasks(database.event_loop)
        return [row("waiting-redis-tasks", "8 tasks, Redis", waiting_for_tasks(database), watch, rounds, seconds)]


def row(  # noqa: PLR0913, PLR0917 - what a row is, and how it is run
    key: str,
    title: str,
    implementations: Iterable[Implementation],
    watch: Watch,
    rounds: int,
    seconds: float,
) -> Row:
    """Let eight waiters use each implementation in turn; every figure is the median of the rounds."""
    figures: dict[str, list[dict[str, float]]] = {}
    roles, notes, left_out = {}, {}, {}
    implementations = [replace(one, call=one.wait) for one in implementations]
    for _ in range(rounds):
        for one in implementations:
            if one.name in left_out:
                continue
            try:
                round_ = watch(one, seconds)
            except UNAVAILABLE as error:
                left_out[one.name] = str(error)
                continue
            figures.setdefault(one.name, []).append(figures_of(round_))
            roles[one.name] = one.role
            notes[one.name] = notes.get(one.name) or _note(round_.waiters)
    entries = [
        Entry(name, roles[name], {column: median(each[column] for each in seen) for column in seen[0]}, notes[name])
        for name, seen in figures.items()
    ]
    for entry in entries:
        print(f"{title}: {entry.name}", *(f"{column} {value:.3f}" for column, value in entry.values.items()))
    return Row(key, title, entries, left_out)


def by_threads(one: Implementation, seconds: float) -> Round:
    """Let threads wait for a new limiter."""
    it, loop = prepared(one, SIZE)
    waiters = [Waiter() for _ in range(WAITERS)]
    began = []

    def spend_burst() -> None:
        loop(it, SIZE.capacity)
        began.append(time.perf_counter())

    barrier = threading.Barrier(WAITERS, spend_burst)

    def work(waiter: Waiter) -> None:
        barrier.wait()
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            waiter.since = now
            try:
                waiter.count(admitted=bool(loop(it, 1)))
            except Exception as error:  # noqa: BLE001 - an error of a limiter is a result
                waiter.fail(error)
        waiter.since = None

    running = [threading.Thread(target=work, args=[waiter], daemon=True) for waiter in waiters]
    for thread in running:
        thread.start()
    end = time.monotonic() + seconds + _JOIN_TIMEOUT
    for thread in running:
        thread.join(max(0.0, end - time.monotonic()))
    return Round(began[0], waiters)


def by_tasks(event_loop: asyncio.AbstractEventLoop) -> Watch:
    """Return a function that lets tasks wait for a new limiter."""

    async def work(it: Any, loop: Callable[[Any, int], Any], waiter: Waiter, end: float) -> None:  # noqa: ANN401
        while (now := time.perf_counter()) < end:
            waiter.since = now
            try:
                waiter.count(admitted=bool(await loop(it, 1)))
            except Exception as error:  # noqa: BLE001
                waiter.fail(error)
        waiter.since = None

    async def watch(one: Implementation, seconds: float) -> Round:
        waiters = [Waiter() for _ in range(WAITERS)]
        it, loop = prepared(one, SIZE)
        await loop(it, SIZE.capacity)
        began = time.perf_counter()
        end = began + seconds
        running = [asyncio.ensure_future(work(it, loop, waiter, end)) for waiter in waiters]
        _, pending = await asyncio.wait(running, timeout=seconds + _JOIN_TIMEOUT)
        for task in pending:
            task.cancel()
        return Round(began, waiters)

    return lambda one, seconds: event_loop.run_until_complete(watch(one, seconds))


def figures_of(round_: Round) -> dict[str, float]:
    """
    Return the figures of one round.

    Returns:
        ``achieved``: the share of the limit that was used until the last token. ``spread``: the difference between the
        most and the fewest tokens of a waiter, as a share of the mean. ``longest``: the longest wait, in fair waits.
        ``refused`` and ``errors``: the number of calls without a token, and with an error.
    """
    waiters = round_.waiters
    served = [at for waiter in waiters for at in waiter.served]
    counts = [len(waiter.served) for waiter in waiters]
    now = time.perf_counter()
    waits = [wait for waiter in waiters for wait in waiter.waits]
    waits += [now - waiter.since for waiter in waiters if waiter.since is not None]
    return {
        "achieved": len(served) / SIZE.fill_rate / (max(served) - round_.began),
        "spread": (max(counts) - min(counts)) / (sum(counts) / len(counts)),
        "longest": max(waits) / FAIR_WAIT,
        "refused": float(sum(waiter.refused for waiter in waiters)),
        "errors": float(sum(sum(waiter.errors.values()) for waiter in waiters)),
    }


def _note(waiters: list[Waiter]) -> str:
    names = sorted({name for waiter in waiters for name in waiter.errors})
    return f"raises {', '.join(names)}" if names else ""
