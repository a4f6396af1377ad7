"""Each act as a table, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bucketflow_celery.demo.limits import NOISY, QUIET, label
from bucketflow_celery.demo.sides import FEW, FLOOD, Side
from bucketflow_celery.demo.summary import Line, Summary

__all__ = ["report_levels", "report_sides"]

#: Seconds of waiting below which a share says nothing.
ENOUGH = 1.0

_MEANINGS = {
    "waited": "how long tasks waited for this level and for no other",
    "used": "share of its tokens that were used meanwhile; –: too short to tell",
    "worst window": "of all windows: what started in it, of what the limit allows",
    "deliveries": "of a task to a worker, on average",
}


def report_levels(console: Console, summary: Summary) -> list[str]:
    """Print the figures of the first act; return the promises that were broken."""
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
            _used(line),
            f"{line.worst.cost:g} of {line.worst.allowed:.1f}" if line.worst else "–",
            f"{line.deliveries:.2f}",
        )
    console.print(table)
    for name, meaning in _MEANINGS.items():
        console.print(f"{name:>12}: {meaning}", style="dim", highlight=False)
    return _judge(console, summary, summary.broken)


def report_sides(console: Console, summary: Summary, sides: Sequence[Side]) -> list[str]:
    """Print the figures of the second act, side by side; return the promises that were broken."""
    title = f"{summary.sent} tasks in {summary.seconds:.1f} s, one tenant noisy"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("on_limit")
    for side in sides:
        table.add_column(side.on_limit, justify="right", no_wrap=True)
    for name, figures in {
        f"{NOISY}: {FLOOD} tasks, done": [side.done(NOISY) for side in sides],
        f"{QUIET}: {FEW} tasks sent later, done": [side.done(QUIET) for side in sides],
        f"{QUIET}: its fair share, done": [f"after {side.fair:.1f} s" for side in sides],
        "used of the queue's limit": [_used(line) for line in summary.lines],
        "deliveries": [f"{side.deliveries:.2f}" for side in sides],
    }.items():
        table.add_row(name, *figures)
    console.print(table)
    story = " and ".join(f"{side.done(QUIET)} with {side.on_limit}" for side in sides)
    words = f"the quiet tenant is done {story} (fair share: {sides[0].fair:.1f} s)"
    console.print(words, style="bold", highlight=False, soft_wrap=True)
    return _judge(console, summary, [*summary.broken, *(promise for side in sides for promise in side.broken)])


def _used(line: Line) -> str:
    return f"{line.used:.1%}" if line.waited > ENOUGH else "–"


def _judge(console: Console, summary: Summary, broken: list[str]) -> list[str]:
    console.print(f"tasks lost: {summary.lost}   started twice: {summary.repeated}", style="bold", highlight=False)
    for promise in broken:
        console.print(f"BROKEN: {promise}", style="bold red", markup=False, highlight=False)
    return broken
