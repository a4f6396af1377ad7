"""The screen that shows a run while it lasts; where there is no terminal, a line every other second."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import label
from bucketflow_celery.throttle import LevelView

__all__ = ["Counters", "Lines", "Screen", "Views", "achieved"]

#: Seconds over which the achieved rate is taken.
SPAN = 3.0

#: What each worker counts, by its name.
Counters: TypeAlias = Mapping[str, Mapping[str, int]]

#: How each level stands, by its key.
Views: TypeAlias = Mapping[str, LevelView]


def achieved(ledger: Ledger, now: float) -> dict[str, float]:
    """Return the tokens a second that started lately, by the level's key."""
    span = max(1.0, min(SPAN, now))
    return {
        level.key: sum(cost for at, cost in ledger.started(level) if at > now - span) / span for level in ledger.levels
    }


class Screen:
    """
    One screen on a terminal.

    Args:
        console: The terminal.
        ledger: The run.
    """

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._ledger = ledger
        self._live = Live(console=console, auto_refresh=False, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the screen up inside the block."""
        with self._live:
            yield

    def show(self, now: float, views: Views, counters: Counters) -> None:
        """Draw second *now*."""
        rows = max(1, self._live.console.height - 14)
        parts = (
            Rule("bucketflow: workers under shared limits"),
            self._progress(now),
            "",
            self._levels(now, views, rows),
            "",
            self._workers(counters),
            "",
            Text("Ctrl-C ends it and leaves nothing behind", style="dim"),
        )
        self._live.update(Group(*parts), refresh=True)

    def _progress(self, now: float) -> RenderableType:
        ledger = self._ledger
        grid = Table.grid(padding=(0, 1))
        everything = len(ledger.orders)
        for name, done in (("sent", len(ledger.sent)), ("started", len(ledger.starts))):
            grid.add_row(name, _bar(done, everything, 40), f"{done} of {everything} tasks")
        grid.add_row("time", f"{now:.1f} s")
        return grid

    def _levels(self, now: float, views: Views, most: int) -> Table:
        ledger, rates = self._ledger, achieved(self._ledger, now)
        table = _table("level", "limit", "now", "", "tokens", "waiting", "line", "deliveries")
        for level in ledger.levels[:most]:
            view, rate = views.get(level.key), rates[level.key]
            table.add_row(
                Text(label(level)),
                f"{level.limit.fill_rate:g}/s",
                f"{rate:.1f}/s",
                _bar(rate, level.limit.fill_rate, 8),
                f"{math.floor(view.tokens)} of {level.limit.capacity:g}" if view else "",
                str(ledger.waiting(level)),
                f"{view.line:.1f} s" if view else "",
                f"{ledger.per_task(level):.2f}",
            )
        if len(ledger.levels) > most:
            table.add_row(f"and {len(ledger.levels) - most} more")
        return table

    @staticmethod
    def _workers(counters: Counters) -> Table:
        columns = {
            "admitted": "admitted",
            "holding": "waiting",
            "held so far": "held",
            "sent back": "returned",
            "calls to Redis": "round_trips",
        }
        table = _table("worker", *columns)
        for name, counter in sorted(counters.items()):
            table.add_row(name, *(str(counter[key]) for key in columns.values()))
        return table


def _table(*headings: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number and heading else "left", no_wrap=True)
    return table


def _bar(done: float, total: float, width: int) -> ProgressBar:
    return ProgressBar(total=total, completed=done, width=width, complete_style="cyan", finished_style="cyan")


class Lines:
    """
    What :class:`Screen` shows, for a log.

    Args:
        console: Where to.
        ledger: The run.
    """

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self._console = console
        self._ledger = ledger
        self._next = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Do nothing: lines stay."""
        yield

    def show(self, now: float, _views: Views, counters: Counters) -> None:
        """Print a line, if it is time for one, and the last."""
        if now < self._next and not self._ledger.complete:
            return
        self._next = now + 2.0
        ledger, rates = self._ledger, achieved(self._ledger, now)
        parts: Sequence[str] = [
            f"{now:5.1f} s  sent {len(ledger.sent)}/{len(ledger.orders)}  started {len(ledger.starts)}",
            f"held {sum(counter['waiting'] for counter in counters.values())}",
            *(f"{label(level)} {rates[level.key]:.1f}/s" for level in ledger.levels),
        ]
        self._console.print("  ".join(parts), soft_wrap=True, highlight=False, markup=False)
