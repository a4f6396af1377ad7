"""What the demo's screens are made of."""

from __future__ import annotations

from rich.progress_bar import ProgressBar
from rich.table import Table

__all__ = ["bar", "table"]


def table(*headings: str) -> Table:
    """Return a table without lines: words to the left, figures to the right."""
    made = Table(box=None, padding=(0, 2, 0, 0))
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number and heading else "left", no_wrap=True)
    return made


def bar(done: float, total: float, width: int) -> ProgressBar:
    """Return a bar, full when all is done."""
    return ProgressBar(total=total, completed=done, width=width, complete_style="cyan", finished_style="cyan")
