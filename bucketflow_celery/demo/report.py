"""The summary as a table, and the verdict."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bucketflow_celery.demo.limits import label
from bucketflow_celery.demo.summary import Summary

__all__ = ["report"]

#: Seconds of waiting below which a share says nothing.
ENOUGH = 1.0

_MEANINGS = {
    "waited": "how long tasks waited for this level and for no other",
    "used": "share of its tokens that were used meanwhile; –: too short to tell",
    "worst window": "of all windows: what started in it, of what the limit allows",
    "deliveries": "of a task to a worker, on average",
}


def report(console: Console, summary: Summary) -> None:
    """Print the figures of a run and whether its promises were kept."""
    table = Table(title=f"{summary.sent} tasks in {summary.seconds:.1f} s", title_justify="left", title_style="bold")
    table.add_column("level")
    for heading in ("limit", "tasks", "waited", "used", "worst window", "deliveries"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in summary.lines:
        table.add_row(
            escape(label(line.level)),
            f"{line.level.limit.fill_rate:g}/s",
            str(line.tasks),
            f"{line.waited:.1f} s",
            f"{line.used:.1%}" if line.waited > ENOUGH else "–",
            f"{line.worst.cost:g} of {line.worst.allowed:.1f}" if line.worst else "–",
            f"{line.deliveries:.2f}",
        )
    console.print(table)
    for name, meaning in _MEANINGS.items():
        console.print(f"{name:>12}: {meaning}", style="dim", highlight=False)
    console.print(f"tasks lost: {summary.lost}   started twice: {summary.repeated}", style="bold", highlight=False)
    for promise in summary.broken:
        console.print(f"BROKEN: {promise}", style="bold red", markup=False, highlight=False)
