"""How a limiter is made and called; the loops around the calls are compiled, as ``timeit`` does it, and alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

from comparison.race import Racer, Role


class Size(NamedTuple):
    """A limit, as a token bucket has it."""

    capacity: int
    fill_rate: float

    @property
    def window(self) -> tuple[int, int]:
        """The nearest that a limiter of windows has: so many in so many seconds."""
        return self.capacity, max(1, round(self.capacity / self.fill_rate))

    @property
    def pace(self) -> tuple[int, float]:
        """The fill rate as a whole number of tokens in so many seconds."""
        return (round(self.fill_rate), 1.0) if self.fill_rate >= 1 else (1, 1 / self.fill_rate)


#: Never refuses, and never is full again either: the state of every bucket is alive.
AMPLE = Size(10**9, 1000)
#: Refuses all but the first call.
DRY = Size(1, 0.001)

_SYNC = """
def loop(it, times):
    admitted = 0
    for _ in repeat(None, times):
        if {call}:
            admitted += 1
    return admitted
"""


@dataclass(frozen=True)
class Contestant:
    """
    A limiter.

    Attributes:
        name: As the table shows it.
        make: Makes one for a size and a key.
        call: An expression that takes one token from ``it`` without waiting, true if it was there.
        role: See :class:`comparison.race.Racer`.
        wait: The same, but it waits for its turn; empty if the limiter cannot.
        refuse: The same as *call*, where that would wait for a token that is not there; ``None`` where it would not,
            empty if the limiter can only wait.
        path: Makes one for a size and the keys of its levels, root first; ``None``: one call a level, root first, is
            all that can be done.
    """

    name: str
    make: Callable[[Size, str], Any]
    call: str
    role: Role = "peer"
    wait: str = ""
    refuse: str | None = None
    path: Callable[[Size, Sequence[str]], Any] | None = None


def compiled(call: str) -> Callable[[Any, int], Any]:
    """Return a function, or a coroutine function if *call* awaits, that evaluates *call* so many times for ``it``."""
    source = _SYNC.format(call=call)
    if "await " in call:
        source = source.replace("def loop", "async def loop")
    names: dict[str, Any] = {}
    exec("from itertools import repeat\n" + source, names)  # the expressions stand in this folder
    return names["loop"]


def refusing(one: Contestant) -> Contestant:
    """
    Return *one* as it is asked when the answer is no.

    Raises:
        NotImplementedError: It can only wait.
    """
    if not one.refuse and one.refuse is not None:
        raise NotImplementedError("it can only wait")
    return one if one.refuse is None else replace(one, call=one.refuse)


_numbers = count()


def prepared(one: Contestant, size: Size, levels: int = 1) -> tuple[Any, Callable[[Any, int], Any]]:
    """Return a fresh limiter of *one* with so many levels, and the loop that calls it."""
    keys = [f"{one.name}-{next(_numbers)}" for _ in range(levels)]
    if levels == 1:
        return one.make(size, keys[0]), compiled(one.call)
    if one.path is not None:
        return one.path(size, keys), compiled(one.call)
    call = " and ".join(f"({one.call.replace('it.', f'it[{level}].')})" for level in range(levels))
    return [one.make(size, key) for key in keys], compiled(call)


def racer(one: Contestant, size: Size = AMPLE, levels: int = 1) -> Racer:
    """Return *one* as it runs in one thread."""
    it, loop = prepared(one, size, levels)
    if size is DRY:
        loop(it, 1)
    return Racer(one.name, one.role, lambda calls: loop(it, calls))


def threaded_racer(one: Contestant, threads: int, levels: int = 1) -> Racer:
    """Return *one* as so many threads share it."""
    it, loop = prepared(one, AMPLE, levels)
    pool = ThreadPoolExecutor(threads)

    def run(calls: int) -> int:
        share, rest = divmod(calls, threads)
        shares = [share + (number < rest) for number in range(threads)]
        return sum(pool.map(lambda part: loop(it, part), shares))

    return Racer(one.name, one.role, run)


def task_racer(  # noqa: PLR0913, PLR0917 - what a row may vary
    one: Contestant,
    event_loop: asyncio.AbstractEventLoop,
    tasks: int = 1,
    limiters: int = 1,
    size: Size = AMPLE,
    levels: int = 1,
) -> Racer:
    """Return *one* as so many asyncio tasks use it, on one limiter or on as many."""

    async def make() -> list[tuple[Any, Callable[[Any, int], Any]]]:  # some want to be made where the loop runs
        made = [prepared(one, size, levels) for _ in range(limiters)]
        if size is DRY:
            for it, loop in made:
                await loop(it, 1)
        return made

    made = event_loop.run_until_complete(make())

    async def gather(calls: int) -> int:
        share, rest = divmod(calls, tasks)
        running: list[Coroutine[Any, Any, int]] = []
        for number in range(tasks):
            it, loop = made[number % limiters]
            running.append(loop(it, share + (number < rest)))
        return sum(await asyncio.gather(*running)) if tasks > 1 else await running[0]

    return Racer(one.name, one.role, lambda calls: event_loop.run_until_complete(gather(calls)))
