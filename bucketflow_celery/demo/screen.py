"""The display of a running scenario: a live screen on a terminal, otherwise a log line every two seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bucketflow_celery.demo.app import peek
from bucketflow_celery.demo.comparison import Comparison
from bucketflow_celery.demo.limits import MODES, NOISY, QUIET, label
from bucketflow_celery.demo.run_log import RunLog

__all__ = ["ComparisonView", "Counters", "LevelsView", "LogScreen", "ScenarioView", "TerminalScreen"]

#: The counters of each worker, by worker name.
Counters: TypeAlias = Mapping[str, Mapping[str, int]]

#: Lines of a terminal that the level rows do not get.
OTHER_LINES = 14

#: Seconds between two log lines.
LOG_INTERVAL = 2.0

#: Seconds over which the current rate of a level is averaged.
RATE_WINDOW = 3.0


class ScenarioView(Protocol):
    """The part of the display that differs between scenarios."""

    title: str

    def table(self, now: float, max_rows: int, /) -> Table:
        """Return the state at second *now* as a table of *max_rows* rows at most."""

    def fields(self, now: float, /) -> Sequence[str]:
        """Return the state at second *now* as fields of a log line."""


class TerminalScreen:
    """
    A live screen on a terminal.

    Args:
        console: The terminal.
        log: The run.
        view: The scenario's own part.
    """

    def __init__(self, console: Console, log: RunLog, view: ScenarioView) -> None:
        self._log = log
        self._view = view
        self._live = Live(console=console, auto_refresh=False, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the screen inside the block."""
        with self._live:
            yield

    def show(self, now: float, counters: Counters) -> None:
        """Redraw the screen for second *now*."""
        parts = (
            Rule(f"bucketflow: {self._view.title}"),
            self._progress(now),
            "",
            self._view.table(now, max(1, self._live.console.height - OTHER_LINES)),
            "",
            self._workers(counters),
            "",
            Text("Ctrl-C ends it and leaves nothing behind", style="dim"),
        )
        self._live.update(Group(*parts), refresh=True)

    def _progress(self, now: float) -> RenderableType:
        log = self._log
        grid = Table.grid(padding=(0, 1))
        total = len(log.orders)
        for name, done in (("sent", len(log.sent)), ("started", len(log.starts))):
            grid.add_row(name, _bar(done, total, 40), f"{done} of {total} tasks")
        grid.add_row("time", f"{now:.1f} s")
        return grid

    @staticmethod
    def _workers(counters: Counters) -> Table:
        columns = {
            "admitted": "admitted",
            "holding": "waiting",
            "held so far": "held",
            "deferred": "deferred",
            "parked": "parked",
            "calls to Redis": "round_trips",
        }
        rows = _table("worker", *columns)
        for name, counter in sorted(counters.items()):
            rows.add_row(name, *(str(counter[key]) for key in columns.values()))
        return rows


class LogScreen:
    """
    The same display as log lines, for output that is no terminal.

    Args:
        console: The output.
        log: The run.
        view: The scenario's own part.
    """

    def __init__(self, console: Console, log: RunLog, view: ScenarioView) -> None:
        self._console = console
        self._log = log
        self._view = view
        self._next = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Do nothing; log lines need no set-up."""
        yield

    def show(self, now: float, counters: Counters) -> None:
        """Print a line if :data:`LOG_INTERVAL` has passed since the last one, or the run is complete."""
        if now < self._next and not self._log.complete:
            return
        self._next = now + LOG_INTERVAL
        log = self._log
        parts: Sequence[str] = [
            f"{now:5.1f} s  sent {len(log.sent)}/{len(log.orders)}  started {len(log.starts)}",
            f"held {sum(counter['waiting'] for counter in counters.values())}",
            *self._view.fields(now),
        ]
        self._console.print("  ".join(parts), soft_wrap=True, highlight=False, markup=False)


class LevelsView:
    """
    The first scenario: one row for each level.

    Args:
        log: The run.
    """

    title = "workers under shared limits"

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def table(self, now: float, max_rows: int) -> Table:
        """
        Return the state of the first *max_rows* levels.

        Raises:
            StoreUnavailable: Redis did not reply in time.
        """
        log, rates, views = self._log, self._rates(now), peek(self._log.paths)
        rows = _table("level", "limit", "now", "", "tokens", "waiting", "reserved", "deliveries")
        for level in log.levels[:max_rows]:
            view, rate = views.get(level.key), rates[level.key]
            rows.add_row(
                Text(label(level)),
                f"{level.limit.fill_rate:g}/s",
                f"{rate:.1f}/s",
                _bar(rate, level.limit.fill_rate, 8),
                f"{math.floor(view.tokens)} of {level.limit.capacity:g}" if view else "",
                str(log.waiting(level)),
                f"{view.reserved_for:.1f} s" if view else "",
                f"{log.deliveries_per_task(level):.2f}",
            )
        if len(log.levels) > max_rows:
            rows.add_row(f"and {len(log.levels) - max_rows} more")
        return rows

    def fields(self, now: float) -> list[str]:
        """Return the current rate of each level."""
        rates = self._rates(now)
        return [f"{label(level)} {rates[level.key]:.1f}/s" for level in self._log.levels]

    def _rates(self, now: float) -> dict[str, float]:
        """Return the tokens a second that started within :data:`RATE_WINDOW`, by level key."""
        log, span = self._log, max(1.0, min(RATE_WINDOW, now))
        return {
            level.key: sum(cost for at, cost in log.started(level) if at > now - span) / span for level in log.levels
        }


class ComparisonView:
    """
    The second scenario: one row for each tenant, the modes side by side.

    Args:
        log: The run.
    """

    title = "one noisy tenant, retry against park"

    def __init__(self, log: RunLog) -> None:
        self._log = log

    def table(self, _now: float, _max_rows: int) -> Table:
        """Return the progress of each tenant."""
        rows = _table("tenant", *(heading for mode in MODES for heading in (mode, "")))
        comparisons = Comparison.all_of(self._log)
        for tenant in (NOISY, QUIET):
            cells: list[RenderableType] = []
            for one in comparisons:
                started, total = len(one.starts[tenant]), one.tasks[tenant]
                cells += [f"{started} of {total}", _bar(started, total, 20)]
            rows.add_row(tenant, *cells)
        return rows

    def fields(self, _now: float) -> list[str]:
        """Return the number of starts of each tenant, by mode."""
        return [
            f"{one.on_limit}: " + ", ".join(f"{tenant} {len(starts)}" for tenant, starts in one.starts.items())
            for one in Comparison.all_of(self._log)
        ]


def _table(*headings: str) -> Table:
    """Return a table without rules; the first column and those without a heading are left-aligned."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number and heading else "left", no_wrap=True)
    return made


def _bar(done: float, total: float, width: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width, complete_style="cyan", finished_style="cyan")
