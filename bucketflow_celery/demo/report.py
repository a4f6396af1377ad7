"""The final tables of the scenarios, and the promises that were broken."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bucketflow_celery.demo.analysis import LevelSummary, Summary
from bucketflow_celery.demo.comparison import Comparison
from bucketflow_celery.demo.limits import NOISY, QUIET, label

__all__ = ["report_comparisons", "report_levels"]

#: Seconds of waiting below which the share of the tokens used is not shown: it would say nothing.
MIN_WAITED = 1.0

_MEANINGS = {
    "waited": "how long tasks waited for this level and for no other",
    "used": "share of its tokens that were used in that time; –: too short to tell",
    "worst window": "of all time windows: tokens that started in it, of those its limit allows",
    "deliveries": "deliveries per task to a worker",
}


def report_levels(console: Console, summary: Summary) -> list[str]:
    """Print the figures of the first scenario; return the promises that were broken."""
    table = Table(title=f"{summary.sent} tasks in {summary.seconds:.1f} s", title_justify="left", title_style="bold")
    table.add_column("level")
    for heading in ("limit", "tasks", "waited", "used", "worst window", "deliveries"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in summary.levels:
        table.add_row(
            escape(label(one.level)),
            f"{one.level.limit.fill_rate:g}/s",
            str(one.tasks),
            f"{one.waited:.1f} s",
            _used(one),
            f"{one.worst.cost:g} of {one.worst.allowed:.1f}" if one.worst else "–",
            f"{one.deliveries:.2f}",
        )
    console.print(table)
    for name, meaning in _MEANINGS.items():
        console.print(f"{name:>12}: {meaning}", style="dim", highlight=False)
    return _report_broken(console, summary, summary.broken)


def report_comparisons(console: Console, summary: Summary, comparisons: Sequence[Comparison]) -> list[str]:
    """Print the figures of the second scenario side by side; return the promises that were broken."""
    title = f"{summary.sent} tasks in {summary.seconds:.1f} s, one tenant noisy"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("on_limit")
    for one in comparisons:
        table.add_column(one.on_limit, justify="right", no_wrap=True)
    first = comparisons[0]
    for name, figures in {
        f"{NOISY}: {first.tasks[NOISY]} tasks, done": [one.describe_duration(NOISY) for one in comparisons],
        f"{QUIET}: {first.tasks[QUIET]} tasks sent later, done": [one.describe_duration(QUIET) for one in comparisons],
        f"{QUIET}: its fair share, done": [f"after {one.fair_duration:.1f} s" for one in comparisons],
        "used of the queue's limit": [_used(level) for level in summary.levels],
        "deliveries": [f"{one.deliveries:.2f}" for one in comparisons],
    }.items():
        table.add_row(name, *figures)
    console.print(table)
    durations = " and ".join(f"{one.describe_duration(QUIET)} with {one.on_limit}" for one in comparisons)
    words = f"the quiet tenant is done {durations} (fair share: {first.fair_duration:.1f} s)"
    console.print(words, style="bold", highlight=False, soft_wrap=True)
    return _report_broken(console, summary, [*summary.broken, *(line for one in comparisons for line in one.broken)])


def _used(one: LevelSummary) -> str:
    return f"{one.used:.1%}" if one.waited > MIN_WAITED else "–"


def _report_broken(console: Console, summary: Summary, broken: list[str]) -> list[str]:
    console.print(f"tasks lost: {summary.lost}   started twice: {summary.repeated}", style="bold", highlight=False)
    for promise in broken:
        console.print(f"BROKEN: {promise}", style="bold red", markup=False, highlight=False)
    return broken
