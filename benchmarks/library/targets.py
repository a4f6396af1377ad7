"""The targets of a run, and whether its results meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from benchmarks.library.results import OURS, Entry, Row

DEEP = f"{OURS}, 3 levels"
LEASED = f"{OURS}, lease=100"
#: Peers that are not written in Python.
COMPILED = {"rust-py-rate-limit"}

Rows = Mapping[str, Row]
#: The server is measured while it is busy. One that is idle between calls has time to spare and wakes up slowly.
BUSY = "without a pause"
WAITING = {
    "waiting-threads": "threads",
    "waiting-tasks": "tasks",
    "waiting-redis-threads": "threads on Redis",
    "waiting-redis-tasks": "tasks on Redis",
}


@dataclass(frozen=True)
class Target:
    """
    One line of the table of targets.

    Attributes:
        subject: What is measured.
        required: The required figure, for display.
        shown: Formats the measured figures.
        measure: Reads the figures from the rows; raises ``KeyError`` if they were not measured.
        met: Whether a figure meets the target.
    """

    subject: str
    required: str
    shown: Callable[[list[float]], str]
    measure: Callable[[Rows], Iterable[float]]
    met: Callable[[float], bool]


@dataclass(frozen=True)
class TargetResult:
    """
    The result of a target.

    Attributes:
        subject: See :class:`Target`.
        required: See :class:`Target`.
        measured: The measured figures, for display.
        met: ``None`` if it was not measured.
    """

    subject: str
    required: str
    measured: str
    met: bool | None


def evaluate(rows: Rows, *, compiled: bool) -> list[TargetResult]:
    """Return the result of each target; *compiled*: whether this installation has a compiled core."""
    results = [_evaluate(target, rows) for target in [*TARGETS, COMPILED_CORE]]
    return results if compiled else [*results[:-1], replace(results[-1], measured="not compiled", met=None)]


def found(rows: Rows, key: str, name: str, column: str) -> float:
    """
    Return one figure.

    Raises:
        KeyError: It was not measured.
    """
    value = rows[key].value(name, column)
    if value is None:
        raise KeyError(key)
    return value


def _evaluate(target: Target, rows: Rows) -> TargetResult:
    try:
        figures = list(target.measure(rows))
        return TargetResult(target.subject, target.required, target.shown(figures), all(map(target.met, figures)))
    except KeyError:
        return TargetResult(target.subject, target.required, "not measured", None)


def against(peers: Iterable[Entry], ours: float = 1.0) -> float:
    """
    Return our rate relative to that of the best peer.

    Args:
        peers: Peers of one row.
        ours: The time of our other entry, relative to our entry in the row; 1 for our entry itself.

    Raises:
        KeyError: There are no peers.
    """
    ratios = [entry.values["over_ours"] for entry in peers]
    if not ratios:
        raise KeyError("peers")
    return min(ratio for ratio in ratios if ratio is not None) / ours


def _of(key: str, name: str, *columns: str) -> Callable[[Rows], list[float]]:
    return lambda rows: [found(rows, key, name, column) for column in columns]


def _against_best(key: str, *names: str) -> Callable[[Rows], list[float]]:
    return lambda rows: [against(rows[key].peers(), found(rows, key, name, "over_ours")) for name in names]


def _against_pure(key: str) -> Callable[[Rows], list[float]]:
    return lambda rows: [against(peer for peer in rows[key].peers() if peer.name not in COMPILED)]


def _waiting(column: str) -> Callable[[Rows], list[float]]:
    return lambda rows: [found(rows, key, OURS, column) for key in WAITING]


def _leases(rows: Rows) -> list[float]:
    return [1 / found(rows, key, LEASED, "over_ours") for key in ("redis-lease", "redis-asyncio-lease")]


def _celery(rows: Rows) -> list[float]:
    return [found(rows, key, OURS, "over_plain") for key in ("celery", "celery-empty")]


def _times(figures: list[float], *labels: str) -> str:
    shown = [f"{figure:.2f} ×" for figure in figures]
    return ", ".join(f"{label}: {figure}" for label, figure in zip(labels, shown, strict=True)) if labels else shown[0]


def _by_waiters(figures: list[float], form: str) -> str:
    return ", ".join(
        f"{waiters} {figure:{form}}".replace("%", " %")
        for waiters, figure in zip(WAITING.values(), figures, strict=True)
    )


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda figure: figure >= least


def _at_most(most: float) -> Callable[[float], bool]:
    return lambda figure: figure <= most


TARGETS = [
    Target(
        "in memory, 1 thread",
        "≤ 1.15 × a minimal bucket",
        _times,
        _of("memory-1", OURS, "over_baseline"),
        _at_most(1.15),
    ),
    Target(
        "in memory, 1 thread",
        "faster than every pure-Python peer",
        lambda figures: f"{figures[0]:.2f} × the rate of the best",
        _against_pure("memory-1"),
        lambda figure: figure > 1,
    ),
    Target("in memory, 3 levels", "≤ 2 × one level", _times, _of("memory-1", DEEP, "over_ours"), _at_most(2)),
    Target(
        "asyncio, in memory",
        "≤ 1.25 × a minimal coroutine bucket",
        _times,
        _of("memory-asyncio", OURS, "over_baseline"),
        _at_most(1.25),
    ),
    Target(
        "Redis, 1 thread, up to 3 levels",
        "≥ 2 × the best peer's rate at one level",
        lambda figures: _times(figures, "1 level", "3 levels"),
        _against_best("redis-1", OURS, DEEP),
        _at_least(2),
    ),
    Target(
        "Redis, 16 threads on one client", "≥ 3 × the best peer", _times, _against_best("redis-16", OURS), _at_least(3)
    ),
    Target(
        "asyncio, 64 callers on one bucket",
        "≥ 8 × the best peer",
        _times,
        _against_best("redis-asyncio-64-on-1", OURS),
        _at_least(8),
    ),
    Target(
        "asyncio, 64 callers on 64 buckets",
        "≥ 2 × the best peer",
        _times,
        _against_best("redis-asyncio-64-on-64", OURS),
        _at_least(2),
    ),
    Target(
        "with `lease=100`",
        "≥ 30 × without",
        lambda figures: _times(figures, "a thread", "a task"),
        _leases,
        _at_least(30),
    ),
    Target(
        "server time, 3 levels, admitted",
        "≤ 10 µs",
        lambda figures: f"without a pause: {figures[0]:.1f} µs",
        _of(f"server, {BUSY}, 3 levels", OURS, "server_us"),
        _at_most(10),
    ),
    Target(
        "8 waiters, at 100/s",
        "0.99 to 1.00 of the limit",
        lambda figures: _by_waiters(figures, ".3f"),
        _waiting("achieved"),
        lambda figure: 0.99 <= figure < 1.005,  # the burst is spent a little before its caller returns
    ),
    Target(
        "8 waiters, at 100/s",
        "shares within 10 % of each other",
        lambda figures: _by_waiters(figures, ".1%"),
        _waiting("spread"),
        _at_most(0.1),
    ),
    Target(
        "8 waiters, at 100/s",
        "longest wait ≤ 1.3 × the fair one",
        lambda figures: _by_waiters(figures, ".2f"),
        _waiting("longest"),
        _at_most(1.3),
    ),
    Target(
        "Celery, no limit reached",
        "≥ 95 % of the unthrottled rate",
        lambda figures: f"tasks of 10 ms: {100 * figures[0]:.1f} %, empty tasks: {100 * figures[1]:.1f} %",
        _celery,
        _at_least(0.95),
    ),
    Target(
        "Celery under load",
        "> 1 admission per round trip",
        lambda figures: f"{figures[0]:.2f}",
        _of("celery-empty", OURS, "per_trip"),
        lambda figure: figure > 1,
    ),
]

COMPILED_CORE = Target(
    "in memory, 1 thread, with a compiled core (optional)",
    "faster than rust-py-rate-limit",
    _times,
    lambda rows: [found(rows, "memory-1", "rust-py-rate-limit", "over_ours")],
    lambda figure: figure > 1,
)
