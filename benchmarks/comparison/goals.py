"""The goals, and whether a run has held them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from comparison.results import OURS, Entry, Row

DEEP = f"{OURS}, 3 levels"
LEASED = f"{OURS}, lease=100"
#: Peers that are not Python.
COMPILED = {"rust-py-rate-limit"}

Rows = Mapping[str, Row]
#: How a server is asked whose time counts: one that sleeps half of the time has plenty, and wakes up slowly.
BUSY = "without a pause"
WAITING = {
    "waiting-threads": "threads",
    "waiting-tasks": "tasks",
    "waiting-redis-threads": "threads on Redis",
    "waiting-redis-tasks": "tasks on Redis",
}


@dataclass(frozen=True)
class Goal:
    """
    One line of the table.

    Attributes:
        row: What is measured.
        wanted: What must come out.
        shown: Puts what came out into words.
        measure: Finds it in the rows; ``KeyError`` where it was not measured.
        held: Whether that is enough.
    """

    row: str
    wanted: str
    shown: Callable[[list[float]], str]
    measure: Callable[[Rows], Iterable[float]]
    held: Callable[[float], bool]


@dataclass(frozen=True)
class Verdict:
    """
    What became of a goal.

    Attributes:
        row: See :class:`Goal`.
        wanted: See :class:`Goal`.
        measured: In words.
        held: ``None`` if it was not measured.
    """

    row: str
    wanted: str
    measured: str
    held: bool | None


def verdicts(rows: Rows, *, compiled: bool) -> list[Verdict]:
    """Return what became of each goal; *compiled*: whether the core of this installation is."""
    judged = [_verdict(goal, rows) for goal in [*GOALS, WITH_COMPILED_CORE]]
    return judged if compiled else [*judged[:-1], replace(judged[-1], measured="it is not compiled", held=None)]


def found(rows: Rows, key: str, name: str, column: str) -> float:
    """
    Return a number.

    Raises:
        KeyError: It was not measured.
    """
    value = rows[key].value(name, column)
    if value is None:
        raise KeyError(key)
    return value


def _verdict(goal: Goal, rows: Rows) -> Verdict:
    try:
        figures = list(goal.measure(rows))
        return Verdict(goal.row, goal.wanted, goal.shown(figures), all(map(goal.held, figures)))
    except KeyError:
        return Verdict(goal.row, goal.wanted, "not measured", None)


def against(peers: Iterable[Entry], ours: float = 1.0) -> float:
    """
    Return how many times the rate of the best of *peers* ours is.

    Args:
        peers: Of one row.
        ours: Our time over that of our entry in the row, where another one is meant.

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


def _by_place(figures: list[float], form: str) -> str:
    return ", ".join(
        f"{place} {figure:{form}}".replace("%", " %") for place, figure in zip(WAITING.values(), figures, strict=True)
    )


def _at_least(least: float) -> Callable[[float], bool]:
    return lambda figure: figure >= least


def _at_most(most: float) -> Callable[[float], bool]:
    return lambda figure: figure <= most


GOALS = [
    Goal(
        "in memory, 1 thread",
        "≤ 1.15 × a minimal bucket",
        _times,
        _of("memory-1", OURS, "over_floor"),
        _at_most(1.15),
    ),
    Goal(
        "in memory, 1 thread",
        "faster than every pure-Python peer",
        lambda figures: f"{figures[0]:.2f} × the rate of the best",
        _against_pure("memory-1"),
        lambda figure: figure > 1,
    ),
    Goal("in memory, 3 levels", "≤ 2 × one level", _times, _of("memory-1", DEEP, "over_ours"), _at_most(2)),
    Goal(
        "asyncio, in memory",
        "≤ 1.25 × a minimal coroutine bucket",
        _times,
        _of("memory-asyncio", OURS, "over_floor"),
        _at_most(1.25),
    ),
    Goal(
        "Redis, 1 thread, up to 3 levels",
        "≥ 2 × the best peer's rate at one level",
        lambda figures: _times(figures, "1 level", "3 levels"),
        _against_best("redis-1", OURS, DEEP),
        _at_least(2),
    ),
    Goal(
        "Redis, 16 threads on one client", "≥ 3 × the best peer", _times, _against_best("redis-16", OURS), _at_least(3)
    ),
    Goal(
        "asyncio, 64 callers on one bucket",
        "≥ 8 × the best peer",
        _times,
        _against_best("redis-asyncio-64-on-1", OURS),
        _at_least(8),
    ),
    Goal(
        "asyncio, 64 callers on 64 buckets",
        "≥ 2 × the best peer",
        _times,
        _against_best("redis-asyncio-64-on-64", OURS),
        _at_least(2),
    ),
    Goal(
        "with `lease=100`",
        "≥ 30 × without",
        lambda figures: _times(figures, "a thread", "a task"),
        _leases,
        _at_least(30),
    ),
    Goal(
        "server time, 3 levels, admitted",
        "≤ 10 µs",
        lambda figures: f"without a pause: {figures[0]:.1f} µs",
        _of(f"server, {BUSY}, 3 levels", OURS, "server_us"),
        _at_most(10),
    ),
    Goal(
        "8 who wait, at 100/s",
        "0.99 to 1.00 of the limit",
        lambda figures: _by_place(figures, ".3f"),
        _waiting("achieved"),
        lambda figure: 0.99 <= figure < 1.005,  # the burst is spent a little before its caller knows it
    ),
    Goal(
        "8 who wait, at 100/s",
        "shares within 10 % of each other",
        lambda figures: _by_place(figures, ".1%"),
        _waiting("spread"),
        _at_most(0.1),
    ),
    Goal(
        "8 who wait, at 100/s",
        "longest wait ≤ 1.3 × the fair one",
        lambda figures: _by_place(figures, ".2f"),
        _waiting("longest"),
        _at_most(1.3),
    ),
    Goal(
        "Celery, no limit reached",
        "≥ 95 % of the unthrottled rate",
        lambda figures: f"tasks of 10 ms: {100 * figures[0]:.1f} %, empty tasks: {100 * figures[1]:.1f} %",
        _celery,
        _at_least(0.95),
    ),
    Goal(
        "Celery under load",
        "> 1 admission per round trip",
        lambda figures: f"{figures[0]:.2f}",
        _of("celery-empty", OURS, "per_trip"),
        lambda figure: figure > 1,
    ),
]

WITH_COMPILED_CORE = Goal(
    "in memory, 1 thread, with a compiled core (optional)",
    "faster than rust-py-rate-limit",
    _times,
    lambda rows: [found(rows, "memory-1", "rust-py-rate-limit", "over_ours")],
    lambda figure: figure > 1,
)
