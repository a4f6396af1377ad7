"""The measurement of a row of implementations, and the entries that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

from benchmarks.library.implementation import Implementation
from benchmarks.library.results import OURS, Entry, Row
from benchmarks.library.timing import Runner, Timing, UnequalCountError, best_peer, named, time_interleaved

#: Errors of an implementation that cannot take part: its package, an option or the ability is missing.
UNAVAILABLE = (ImportError, FileNotFoundError, NotImplementedError)


def available(
    implementations: Iterable[Implementation], prepare: Callable[[Implementation], Runner]
) -> tuple[list[Runner], dict[str, str]]:
    """Return the runners that *prepare* made, and why the other implementations are left out, by name."""
    runners, left_out = [], {}
    for one in implementations:
        try:
            runners.append(prepare(one))
        except UNAVAILABLE as error:
            left_out[one.name] = str(error)
    return runners, left_out


def measure_row(  # noqa: PLR0913 - what a row is, and how it is run
    key: str,
    title: str,
    implementations: Iterable[Implementation],
    prepare: Callable[[Implementation], Runner],
    *,
    also: Iterable[Runner] = (),
    rounds: int = 9,
    slice_seconds: float = 0.03,
    refused: bool = False,
) -> Row:
    """
    Measure one row. A peer that admits another number of calls than it must is left out.

    Args:
        key: See :class:`benchmarks.library.results.Row`.
        title: See :class:`benchmarks.library.results.Row`.
        implementations: The implementations of the row.
        prepare: Makes a runner; raises one of :data:`UNAVAILABLE` if the implementation cannot take part.
        also: Further runners.
        rounds: See :func:`benchmarks.library.timing.time_interleaved`.
        slice_seconds: See :func:`benchmarks.library.timing.time_interleaved`.
        refused: See :func:`benchmarks.library.timing.time_interleaved`.

    Raises:
        UnequalCountError: Ours or a baseline admitted another number of calls.
    """
    runners, left_out = available(implementations, prepare)
    runners += also
    timings = _timings(runners, left_out, rounds=rounds, slice_seconds=slice_seconds, refused=refused)
    baseline, ours = (named(timings, name) for name in (_baseline(timings), OURS))
    entries = [_entry(one, baseline, ours) for one in timings]
    _show(title, timings, baseline, ours)
    return Row(key, title, entries, left_out)


def _timings(runners: list[Runner], left_out: dict[str, str], **options: Any) -> list[Timing]:  # noqa: ANN401
    """Time *runners*; move a peer that does other work from *runners* to *left_out*."""
    while True:
        try:
            return time_interleaved(runners, **options)
        except UnequalCountError as error:
            if error.runner.role != "peer":
                raise
            runners.remove(error.runner)
            left_out[error.runner.name] = error.short


def _baseline(timings: list[Timing]) -> str:
    return next(one.name for one in timings if one.role == "baseline")


def _entry(one: Timing, baseline: Timing, ours: Timing) -> Entry:
    values = {
        "seconds": one.typical,
        "rate": 1 / one.typical,
        "cpu": median(one.cpu),
        "over_baseline": one.over(baseline),
        "over_ours": one.over(ours),
    }
    return Entry(one.name, one.role, values)


def _show(title: str, timings: list[Timing], baseline: Timing, ours: Timing) -> None:
    peer = best_peer(timings)
    best = "" if peer is None else f"; the best peer, {peer.name}, takes {peer.over(ours):.2f} times as long"
    print(f"{title}: {ours.typical * 1e6:.2f} µs a call, {ours.over(baseline):.2f} × the baseline{best}")
