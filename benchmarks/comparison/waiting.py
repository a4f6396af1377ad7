"""
Eight who wait at once, at 100 tokens a second: how much of the limit they get, how evenly, and the longest wait.

The burst has been spent before they come. Each comes again as soon as it has been served, so a fair turn takes eight
intervals.
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

from workers import redis_server

from comparison.contestant import Contestant, Size, prepared
from comparison.in_memory import ASYNC_WAITING, WAITING
from comparison.redis_limiters import Place, threaded_waiting, waiting_in_tasks
from comparison.results import Entry, Row
from comparison.rows import ABSENT

WAITERS = 8
SIZE = Size(10, 100)
#: Seconds that the unluckiest of eight waits if all take turns.
FAIR = WAITERS / SIZE.fill_rate
TURNS = 3
SECONDS = 2.2
#: One that does not come back is not waited for longer than this, in seconds.
_PATIENCE = 8.0


@dataclass
class Waiter:
    """
    What happened to one of them.

    Attributes:
        served: When it got a token, in seconds.
        waits: How long each took, in seconds.
        refused: How often it came back without a token.
        errors: What was raised, and how often.
        since: When it began to wait; ``None`` if it has ended.
    """

    served: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    refused: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    since: float | None = None

    def count(self, *, admitted: bool) -> None:
        """Note an answer."""
        now = time.perf_counter()
        if admitted and self.since is not None:
            self.served.append(now)
            self.waits.append(now - self.since)
        self.refused += not admitted

    def fail(self, error: Exception) -> None:
        """Note an error."""
        name = type(error).__name__
        self.errors[name] = self.errors.get(name, 0) + 1


@dataclass(frozen=True)
class Turn:
    """
    What happened to all of them.

    Attributes:
        began: When the burst had been spent, in seconds.
        waiters: They.
    """

    began: float
    waiters: list[Waiter]


Watch = Callable[[Contestant, float], Turn]


def threads(turns: int = TURNS, seconds: float = SECONDS) -> list[Row]:
    """Measure threads of one process."""
    return [row("waiting-threads", "8 threads, in memory", WAITING, by_threads, turns, seconds)]


def tasks(turns: int = TURNS, seconds: float = SECONDS) -> list[Row]:
    """Measure tasks of one process."""
    return [
        row("waiting-tasks", "8 tasks, in memory", ASYNC_WAITING, by_tasks(asyncio.new_event_loop()), turns, seconds)
    ]


def threads_on_redis(turns: int = TURNS, seconds: float = SECONDS) -> list[Row]:
    """Measure threads with one client of one server."""
    with redis_server() as port:
        contestants = threaded_waiting(Place(port))
        return [row("waiting-redis-threads", "8 threads, Redis", contestants, by_threads, turns, seconds)]


def tasks_on_redis(turns: int = TURNS, seconds: float = SECONDS) -> list[Row]:
    """Measure tasks with one client of one server."""
    with redis_server() as port, closing(Place(port)) as place:
        watch = by_tasks(place.event_loop)
        return [row("waiting-redis-tasks", "8 tasks, Redis", waiting_in_tasks(place), watch, turns, seconds)]


def row(  # noqa: PLR0913, PLR0917 - what a row is, and how it is run
    key: str,
    title: str,
    contestants: Iterable[Contestant],
    watch: Watch,
    turns: int,
    seconds: float,
) -> Row:
    """Let eight wait for each contestant in turn; every figure is the median of the turns."""
    figures: dict[str, list[dict[str, float]]] = {}
    roles, notes, left_out = {}, {}, {}
    contestants = [replace(one, call=one.wait) for one in contestants]
    for _ in range(turns):
        for one in contestants:
            if one.name in left_out:
                continue
            try:
                turn = watch(one, seconds)
            except ABSENT as error:
                left_out[one.name] = str(error)
                continue
            figures.setdefault(one.name, []).append(reckoned(turn))
            roles[one.name] = one.role
            notes[one.name] = notes.get(one.name) or _note(turn.waiters)
    entries = [
        Entry(name, roles[name], {column: median(each[column] for each in seen) for column in seen[0]}, notes[name])
        for name, seen in figures.items()
    ]
    for entry in entries:
        print(f"{title}: {entry.name}", *(f"{column} {value:.3f}" for column, value in entry.values.items()))
    return Row(key, title, entries, left_out)


def by_threads(one: Contestant, seconds: float) -> Turn:
    """Let threads wait for a fresh limiter."""
    it, loop = prepared(one, SIZE)
    waiters = [Waiter() for _ in range(WAITERS)]
    began = []

    def spend_burst() -> None:
        loop(it, SIZE.capacity)
        began.append(time.perf_counter())

    gate = threading.Barrier(WAITERS, spend_burst)

    def work(waiter: Waiter) -> None:
        gate.wait()
        end = time.perf_counter() + seconds
        while (now := time.perf_counter()) < end:
            waiter.since = now
            try:
                waiter.count(admitted=bool(loop(it, 1)))
            except Exception as error:  # noqa: BLE001 - what a limiter raises is part of how it waits
                waiter.fail(error)
        waiter.since = None

    running = [threading.Thread(target=work, args=[waiter], daemon=True) for waiter in waiters]
    for thread in running:
        thread.start()
    end = time.monotonic() + seconds + _PATIENCE
    for thread in running:
        thread.join(max(0.0, end - time.monotonic()))
    return Turn(began[0], waiters)


def by_tasks(event_loop: asyncio.AbstractEventLoop) -> Watch:
    """Return what lets tasks wait for a fresh limiter."""

    async def work(it: Any, loop: Callable[[Any, int], Any], waiter: Waiter, end: float) -> None:  # noqa: ANN401
        while (now := time.perf_counter()) < end:
            waiter.since = now
            try:
                waiter.count(admitted=bool(await loop(it, 1)))
            except Exception as error:  # noqa: BLE001
                waiter.fail(error)
        waiter.since = None

    async def watch(one: Contestant, seconds: float) -> Turn:
        waiters = [Waiter() for _ in range(WAITERS)]
        it, loop = prepared(one, SIZE)
        await loop(it, SIZE.capacity)
        began = time.perf_counter()
        end = began + seconds
        running = [asyncio.ensure_future(work(it, loop, waiter, end)) for waiter in waiters]
        _, pending = await asyncio.wait(running, timeout=seconds + _PATIENCE)
        for task in pending:
            task.cancel()
        return Turn(began, waiters)

    return lambda one, seconds: event_loop.run_until_complete(watch(one, seconds))


def reckoned(turn: Turn) -> dict[str, float]:
    """
    Return the figures of one turn.

    ``achieved`` is the share of the limit that was used until the last token, ``spread`` how far the most
    and the least served are apart as a share of the mean, ``longest`` the longest wait in fair ones.
    """
    waiters = turn.waiters
    served = [at for waiter in waiters for at in waiter.served]
    counts = [len(waiter.served) for waiter in waiters]
    now = time.perf_counter()
    waits = [wait for waiter in waiters for wait in waiter.waits]
    waits += [now - waiter.since for waiter in waiters if waiter.since is not None]
    return {
        "achieved": len(served) / SIZE.fill_rate / (max(served) - turn.began),
        "spread": (max(counts) - min(counts)) / (sum(counts) / len(counts)),
        "longest": max(waits) / FAIR,
        "refused": float(sum(waiter.refused for waiter in waiters)),
        "errors": float(sum(sum(waiter.errors.values()) for waiter in waiters)),
    }


def _note(waiters: list[Waiter]) -> str:
    names = sorted({name for waiter in waiters for name in waiter.errors})
    return f"raises {', '.join(names)}" if names else ""
