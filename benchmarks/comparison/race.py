"""
One row: all contestants in turns of short slices, in one process.

Whatever disturbs the machine disturbs all of them, and a ratio is the median of the ratios of slices that ran one after
the other. A contestant that admits another number of calls than it must does less work, or more: the row fails.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

Role = Literal["floor", "ours", "peer"]


class UnequalCountError(Exception):
    """
    A contestant admitted another number of calls than the row asks for.

    Args:
        racer: Which one.
        admitted: How many calls it admitted.
        calls: How many it was asked.
        wanted: How many it should have admitted.
    """

    def __init__(self, racer: Racer, admitted: int, calls: int, wanted: int) -> None:
        super().__init__(racer, admitted, calls, wanted)
        self.racer, self.admitted, self.calls, self.wanted = racer, admitted, calls, wanted

    def __str__(self) -> str:
        return f"{self.racer.name} admitted {self.admitted} of {self.calls} calls, the row asks for {self.wanted}"


@dataclass(frozen=True)
class Racer:
    """
    What a row needs of a contestant.

    Attributes:
        name: As the table shows it.
        role: Floors are what must be spent anyway; peers are other libraries.
        run: Makes so many calls and returns how many of them were admitted.
    """

    name: str
    role: Role
    run: Callable[[int], int]


@dataclass(frozen=True)
class Standing:
    """
    How a contestant did.

    Attributes:
        name: As the table shows it.
        role: See :class:`Racer`.
        seconds: Of one call, one entry a round.
        cpu: Of those, the seconds this process has computed, all its threads together.
    """

    name: str
    role: Role
    seconds: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def typical(self) -> float:
        """Seconds of one call, the median of all rounds."""
        return median(self.seconds)

    def over(self, other: Standing) -> float:
        """Return how many times the time of *other* it takes: the median of the rounds' ratios."""
        return median(ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def race(
    racers: Sequence[Racer], *, rounds: int = 9, slice_seconds: float = 0.03, refused: bool = False
) -> list[Standing]:
    """
    Let *racers* run in turns, each round begun by another one.

    Args:
        racers: Whom to compare.
        rounds: Slices of each.
        slice_seconds: About how long a slice takes.
        refused: Whether every call must be refused; else every call must be admitted.

    Raises:
        UnequalCountError: A contestant admitted too few, or too many.
    """
    with quiet():
        calls = [_calls_in(racer, slice_seconds, refused=refused) for racer in racers]
        times: list[list[tuple[float, float]]] = [[] for _ in racers]
        for turn in range(rounds):
            for place in range(len(racers)):
                at = (turn + place) % len(racers)
                taken, computed = _timed(racers[at], calls[at], refused=refused)
                times[at].append((taken / calls[at], computed / calls[at]))
    return [Standing(one.name, one.role, *zip(*taken, strict=True)) for one, taken in zip(racers, times, strict=True)]


def named(standings: Sequence[Standing], name: str) -> Standing:
    """Return the standing of *name*."""
    return next(one for one in standings if one.name == name)


def best_peer(standings: Sequence[Standing]) -> Standing | None:
    """Return the fastest of the other libraries, if there is any."""
    return min((one for one in standings if one.role == "peer"), key=lambda one: one.typical, default=None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the garbage collector out of the slices."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _calls_in(racer: Racer, seconds: float, *, refused: bool) -> int:
    """Return how many calls take about *seconds*, once the contestant is warm. What holds up one try is no measure."""
    calls, taken = 1, 0.0
    while taken < seconds / 4:
        calls *= 2
        taken = min(_timed(racer, calls, refused=refused)[0] for _ in range(3))
    return max(1, round(calls * seconds / taken))


def _timed(racer: Racer, calls: int, *, refused: bool) -> tuple[float, float]:
    begin, computed = time.perf_counter(), time.process_time()
    admitted = racer.run(calls)
    taken, computed = time.perf_counter() - begin, time.process_time() - computed
    wanted = 0 if refused else calls
    if admitted != wanted:
        raise UnequalCountError(racer, admitted, calls, wanted)
    return taken, computed
