"""Descriptions of limiters: how one is made and called. The loops around the calls are compiled, as in ``timeit``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

from benchmarks.library.timing import Role, Runner


class Size(NamedTuple):
    """
    A limit of a token bucket.

    Attributes:
        capacity: Tokens.
        fill_rate: Tokens per second.
    """

    capacity: int
    fill_rate: float

    @property
    def window(self) -> tuple[int, int]:
        """The nearest limit of a window limiter: a number of calls, and the length of the window in whole seconds."""
        return self.capacity, max(1, round(self.capacity / self.fill_rate))

    @property
    def pace(self) -> tuple[int, float]:
        """The fill rate as a whole number of tokens, and the seconds in which they arrive."""
        return (round(self.fill_rate), 1.0) if self.fill_rate >= 1 else (1, 1 / self.fill_rate)


#: Never refuses, and is never full again after a call, so that no bucket can drop its state.
AMPLE = Size(10**9, 1000)
#: Refuses every call but the first.
EXHAUSTED = Size(1, 0.001)

_SYNC = """
def loop(it, times):
    admitted = 0
    for _ in repeat(None, times):
        if {call}:
            admitted += 1
    return admitted
"""


@dataclass(frozen=True)
class Implementation:
    """
    A limiter.

    Attributes:
        name: Its name in the tables.
        make: Makes a limiter for a size and a key.
        call: An expression that takes a token from ``it`` without waiting; true if it was admitted.
        role: See :class:`benchmarks.library.timing.Runner`.
        wait: An expression that waits for the token; empty if the limiter cannot wait.
        refuse: The expression to use instead of *call* if there is no token, where *call* would wait. ``None``: *call*
            does not wait. Empty: the limiter can only wait.
        path: Makes a limiter for a size and the keys of its levels, root first. ``None``: it has no hierarchy, so that
            three levels take one call each, root first.
    """

    name: str
    make: Callable[[Size, str], Any]
    call: str
    role: Role = "peer"
    wait: str = ""
    refuse: str | None = None
    path: Callable[[Size, Sequence[str]], Any] | None = None


def compiled(call: str) -> Callable[[Any, int], Any]:
    """
    Compile ``loop(it, times)``, which evaluates *call* that many times and returns how many were admitted.

    It is a coroutine function if *call* awaits.
    """
    source = _SYNC.format(call=call)
    if "await " in call:
        source = source.replace("def loop", "async def loop")
    names: dict[str, Any] = {}
    exec("from itertools import repeat\n" + source, names)  # the expressions are those of this package
    return names["loop"]


def refusing(one: Implementation) -> Implementation:
    """
    Return *one* with a call that does not wait for a token that is not there.

    Raises:
        NotImplementedError: It can only wait.
    """
    if not one.refuse and one.refuse is not None:
        raise NotImplementedError("it can only wait")
    return one if one.refuse is None else replace(one, call=one.refuse)


_numbers = count()


def prepared(one: Implementation, size: Size, levels: int = 1) -> tuple[Any, Callable[[Any, int], Any]]:
    """Return a new limiter of *one* with *levels* levels, and the loop that calls it."""
    keys = [f"{one.name}-{next(_numbers)}" for _ in range(levels)]
    if levels == 1:
        return one.make(size, keys[0]), compiled(one.call)
    if one.path is not None:
        return one.path(size, keys), compiled(one.call)
    call = " and ".join(f"({one.call.replace('it.', f'it[{level}].')})" for level in range(levels))
    return [one.make(size, key) for key in keys], compiled(call)


def runner(one: Implementation, size: Size = AMPLE, levels: int = 1) -> Runner:
    """Return a runner that calls *one* in this thread."""
    it, loop = prepared(one, size, levels)
    if size is EXHAUSTED:
        loop(it, 1)
    return Runner(one.name, one.role, lambda calls: loop(it, calls))


def threaded_runner(one: Implementation, threads: int, levels: int = 1) -> Runner:
    """Return a runner whose *threads* threads share one limiter."""
    it, loop = prepared(one, AMPLE, levels)
    pool = ThreadPoolExecutor(threads)

    def run(calls: int) -> int:
        share, rest = divmod(calls, threads)
        shares = [share + (number < rest) for number in range(threads)]
        return sum(pool.map(lambda part: loop(it, part), shares))

    return Runner(one.name, one.role, run)


def task_runner(  # noqa: PLR0913, PLR0917 - what a row may vary
    one: Implementation,
    event_loop: asyncio.AbstractEventLoop,
    tasks: int = 1,
    limiters: int = 1,
    size: Size = AMPLE,
    levels: int = 1,
) -> Runner:
    """Return a runner of *tasks* asyncio tasks that share *limiters* limiters."""

    async def make() -> list[tuple[Any, Callable[[Any, int], Any]]]:  # some must be made inside the loop
        made = [prepared(one, size, levels) for _ in range(limiters)]
        if size is EXHAUSTED:
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

    return Runner(one.name, one.role, lambda calls: event_loop.run_until_complete(gather(calls)))
