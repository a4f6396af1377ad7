"""
The measurement of one row: all implementations run alternately in short slices, in one process.

A disturbance of the machine then affects all of them. A ratio is the median of the ratios of slices that ran one after
the other. An implementation that admits another number of calls than it must does other work, and fails the row.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Literal

Role = Literal["baseline", "ours", "peer"]


class UnequalCountError(Exception):
    """
    Raised if an implementation admits another number of calls than the row requires.

    Args:
        runner: The implementation.
        admitted: The number of calls that it admitted.
        calls: The number of calls made.
        required: The number of calls that it should have admitted.
    """

    def __init__(self, runner: Runner, admitted: int, calls: int, required: int) -> None:
        super().__init__(runner, admitted, calls, required)
        self.runner, self.admitted, self.calls, self.required = runner, admitted, calls, required

    @property
    def short(self) -> str:
        """The message without the name."""
        return f"admitted {self.admitted} of {self.calls} calls instead of {self.required}"

    def __str__(self) -> str:
        return f"{self.runner.name} {self.short}"


@dataclass(frozen=True)
class Runner:
    """
    An implementation, ready to run.

    Attributes:
        name: Its name in the tables.
        role: A baseline is the unavoidable cost; a peer is another library.
        run: Makes the given number of calls and returns how many of them were admitted.
    """

    name: str
    role: Role
    run: Callable[[int], int]


@dataclass(frozen=True)
class Timing:
    """
    The times of an implementation.

    Attributes:
        name: Its name in the tables.
        role: See :class:`Runner`.
        seconds: Seconds per call, one entry a round.
        cpu: CPU seconds of this process per call, all threads together, one entry a round.
    """

    name: str
    role: Role
    seconds: tuple[float, ...]
    cpu: tuple[float, ...]

    @property
    def typical(self) -> float:
        """Seconds per call, the median of all rounds."""
        return median(self.seconds)

    def over(self, other: Timing) -> float:
        """Return the time per call relative to *other*: the median of the rounds' ratios."""
        return median(ours / theirs for ours, theirs in zip(self.seconds, other.seconds, strict=True))


def time_interleaved(
    runners: Sequence[Runner], *, rounds: int = 9, slice_seconds: float = 0.03, refused: bool = False
) -> list[Timing]:
    """
    Time *runners* in alternating slices; each round begins with another one.

    Args:
        runners: The implementations to compare.
        rounds: Slices of each.
        slice_seconds: Approximate length of a slice.
        refused: Whether every call must be refused; otherwise every call must be admitted.

    Raises:
        UnequalCountError: An implementation admitted too few or too many calls.
    """
    with gc_disabled():
        calls = [_calls_in(runner, slice_seconds, refused=refused) for runner in runners]
        times: list[list[tuple[float, float]]] = [[] for _ in runners]
        for number in range(rounds):
            for offset in range(len(runners)):
                at = (number + offset) % len(runners)
                taken, computed = _timed(runners[at], calls[at], refused=refused)
                times[at].append((taken / calls[at], computed / calls[at]))
    return [Timing(one.name, one.role, *zip(*taken, strict=True)) for one, taken in zip(runners, times, strict=True)]


def named(timings: Sequence[Timing], name: str) -> Timing:
    """Return the timing of *name*."""
    return next(one for one in timings if one.name == name)


def best_peer(timings: Sequence[Timing]) -> Timing | None:
    """Return the timing of the fastest peer, if there is any."""
    return min((one for one in timings if one.role == "peer"), key=lambda one: one.typical, default=None)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Collect garbage, then disable the garbage collector inside the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _calls_in(runner: Runner, seconds: float, *, refused: bool) -> int:
    """Return how many calls take about *seconds* once warm. The fastest of three tries counts: it was not disturbed."""
    calls, taken = 1, 0.0
    while taken < seconds / 4:
        calls *= 2
        taken = min(_timed(runner, calls, refused=refused)[0] for _ in range(3))
    return max(1, round(calls * seconds / taken))


def _timed(runner: Runner, calls: int, *, refused: bool) -> tuple[float, float]:
    begin, computed = time.perf_counter(), time.process_time()
    admitted = runner.run(calls)
    taken, computed = time.perf_counter() - begin, time.process_time() - computed
    required = 0 if refused else calls
    if admitted != required:
        raise UnequalCountError(runner, admitted, calls, required)
    return taken, computed
