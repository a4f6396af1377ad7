"""The screen that shows a run while it lasts; where there is no terminal, a line every other second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeAlias

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.widgets import bar, table

__all__ = ["Counters", "Lines", "Rows", "Screen"]

#: What each worker counts, by its name.
Counters: TypeAlias = Mapping[str, Mapping[str, int]]


class Rows(Protocol):
    """What an act has to show of its own."""

    title: str

    def table(self, now: float, most: int, /) -> Table:
        """Return second *now*, in *most* rows."""

    def words(self, now: float, /) -> Sequence[str]:
        """Return it for a line of a log."""


class Screen:
    """
    One screen on a terminal.

    Args:
        console: The terminal.
        ledger: The run.
        rows: What is special about it.
    """

    def __init__(self, console: Console, ledger: Ledger, rows: Rows) -> None:
        self._ledger = ledger
        self._rows = rows
        self._live = Live(console=console, auto_refresh=False, transient=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Keep the screen up inside the block."""
        with self._live:
            yield

    def show(self, now: float, counters: Counters) -> None:
        """Draw second *now*."""
        most = max(1, self._live.console.height - 14)
        parts = (
            Rule(f"bucketflow: {self._rows.title}"),
            self._progress(now),
            "",
            self._rows.table(now, most),
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
            grid.add_row(name, bar(done, everything, 40), f"{done} of {everything} tasks")
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
        rows = table("worker", *columns)
        for name, counter in sorted(counters.items()):
            rows.add_row(name, *(str(counter[key]) for key in columns.values()))
        return rows


class Lines:
    """
    What :class:`Screen` shows, for a log.

    Args:
        console: Where to.
        ledger: The run.
        rows: What is special about it.
    """

    def __init__(self, console: Console, ledger: Ledger, rows: Rows) -> None:
        self._console = console
        self._ledger = ledger
        self._rows = rows
        self._next = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Do nothing: lines stay."""
        yield

    def show(self, now: float, counters: Counters) -> None:
        """Print a line, if it is time for one, and the last."""
        if now < self._next and not self._ledger.complete:
            return
        self._next = now + 2.0
        ledger = self._ledger
        parts: Sequence[str] = [
            f"{now:5.1f} s  sent {len(ledger.sent)}/{len(ledger.orders)}  started {len(ledger.starts)}",
            f"held {sum(counter['waiting'] for counter in counters.values())}",
            *self._rows.words(now),
        ]
        self._console.print("  ".join(parts), soft_wrap=True, highlight=False, markup=False)
