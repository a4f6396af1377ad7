"""The chart: a panel for each level of the first scenario above, the comparison of the second below."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from bucketflow.algorithm.window import Start
from bucketflow.limit import Limit
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo.analysis import Summary
from bucketflow_celery.demo.comparison import Comparison
from bucketflow_celery.demo.limits import NOISY, QUIET, label, limit_label, path_of
from bucketflow_celery.demo.run_log import RunLog

__all__ = ["draw", "envelope"]

#: Panels that fit on a page. Further levels are left out.
MAX_PANELS = 9

COLUMNS = 3

# Colours of Okabe and Ito, each with a line style of its own: distinct for the colour-blind and in print.
_GREY, _BLUE, _ORANGE = "#8c8c8c", "#0072b2", "#d55e00"
_DOTTED, _DASHED = (0, (1, 1)), (0, (5, 2))

_SECONDS = "seconds since the first task was sent"


def draw(log: RunLog, summary: Summary, comparisons: Sequence[Comparison], path: Path) -> None:
    """
    Write the chart of both scenarios as PNG.

    Args:
        log: The run of the first scenario.
        summary: The figures of *log*.
        comparisons: The results of the second scenario; length >= 1.
        path: The file; its directory exists.
    """
    heights = [1.2 + 3.2 * _panel_rows(log), 4.8]
    figure = Figure(figsize=(1.0 + 4.2 * COLUMNS, sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.15))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.03).flat
    _draw_levels(above, log, summary)
    _draw_comparisons(below, comparisons)
    figure.savefig(path, dpi=130)


def envelope(limit: Limit, starts: Sequence[Start], until: float) -> list[tuple[float, float]]:
    """
    Return the corners of the line that the running total of started tokens must not cross.

    The line is the running total plus the tokens in the bucket. It rises at the fill rate and is level while the bucket
    is full.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        starts: Sorted by time.
        until: Where the line ends, in seconds; not before the last start.

    Returns:
        Seconds and tokens, sorted by time; length >= 2.
    """
    total, tokens, before = 0.0, limit.capacity, 0.0
    corners = [(0.0, limit.capacity)]
    for at, cost in [*starts, Start(until, 0.0)]:
        full_at = before + (limit.capacity - tokens) / limit.fill_rate
        if before < full_at < at:
            corners.append((full_at, total + limit.capacity))
        tokens = min(limit.capacity, tokens + limit.fill_rate * (at - before))
        corners.append((at, total + tokens))
        total, tokens, before = total + cost, tokens - cost, at
    return corners


def _panel_rows(log: RunLog) -> int:
    return -(-len(log.levels[:MAX_PANELS]) // COLUMNS)


def _draw_levels(figure: Any, log: RunLog, summary: Summary) -> None:
    levels = log.levels[:MAX_PANELS]
    panels = list(figure.subplots(_panel_rows(log), COLUMNS, sharex=True, squeeze=False).flat)
    for panel, level in zip(panels, levels, strict=False):
        _draw_level(panel, log, level, summary.seconds)
    for panel in panels[len(levels) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(levels) - COLUMNS) : len(levels)]:
        panel.set_xlabel(_SECONDS)
        panel.tick_params(labelbottom=True)
    for panel in panels[: len(levels) : COLUMNS]:
        panel.set_ylabel("tokens so far")
    title = f"Tokens started and the limit: {summary.sent} tasks in {summary.seconds:.1f} s"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    _add_legend(figure, panels[0])


def _draw_level(panel: Any, log: RunLog, level: Level, until: float) -> None:
    started = log.started(level)
    sent = sorted(Start(at, order.cost) for at, order in map(log.sent.__getitem__, log.ids(level)))
    panel.step(*_sums(sent, until), where="post", label="sent", color=_GREY, linewidth=1.2, linestyle=_DOTTED)
    panel.step(*_sums(started, until), where="post", label="started", color=_BLUE, linewidth=2.0)
    corners = envelope(level.limit, started, until)
    name = "limit: capacity + rate × time (level while the bucket is full)"
    panel.plot(*zip(*corners, strict=True), label=name, color=_ORANGE, linewidth=1.4, linestyle=_DASHED)
    panel.set_title(label(level), loc="left", fontweight="bold", fontsize=11)
    panel.set_title(limit_label(level), loc="right", fontsize=10)
    _format_axes(panel, until)


def _sums(starts: Sequence[Start], until: float) -> tuple[list[float], list[float]]:
    sums = list(accumulate((start.cost for start in starts), initial=0.0))
    return [0.0, *(start.at for start in starts), until], [*sums, sums[-1]]


def _draw_comparisons(figure: Any, comparisons: Sequence[Comparison]) -> None:
    panels = figure.subplots(1, len(comparisons), sharex=True, sharey=True, squeeze=False)[0]
    until = max(at for one in comparisons for starts in one.starts.values() for at in (*starts, 1.0))
    for panel, one in zip(panels, comparisons, strict=True):
        _draw_comparison(panel, one, until)
        panel.set_xlabel(_SECONDS)
    panels[0].set_ylabel("tasks started so far")
    figure.suptitle("One noisy tenant: how long the quiet one waits", fontsize=14, fontweight="bold")
    _add_legend(figure, panels[0])


def _draw_comparison(panel: Any, one: Comparison, until: float) -> None:
    (queue,) = path_of(QUIET, one.on_limit)
    panel.step(*_counts(one.starts[NOISY], until), where="post", label=NOISY, color=_GREY, linewidth=2.0)
    # Not clipped: for a long time the line lies on the axis, which would hide half of it.
    quiet = {"label": QUIET, "color": _BLUE, "linewidth": 2.5, "clip_on": False}
    panel.step(*_counts(one.starts[QUIET], until), where="post", **quiet)
    sent_at = one.sent_at[QUIET]
    fair = (sent_at, sent_at + one.fair_duration), (0, one.tasks[QUIET])
    panel.plot(*fair, label=f"{QUIET}, fair share", color=_ORANGE, linewidth=1.4, linestyle=_DASHED)
    _draw_duration(panel, one, until)
    panel.set_title(f'on_limit="{one.on_limit}"', loc="left", fontweight="bold", fontsize=11)
    panel.set_title(f"queue {limit_label(queue)}", loc="right", fontsize=10)
    _format_axes(panel, until)


def _draw_duration(panel: Any, one: Comparison, until: float) -> None:
    """Mark the quiet tenant's time from its first sending to its last start."""
    sent_at, height = one.sent_at[QUIET], one.tasks[QUIET] * 1.3
    ends = {"xy": (min(until, sent_at + one.duration(QUIET)), height), "xytext": (sent_at, height)}
    panel.annotate("", **ends, arrowprops={"arrowstyle": "<->", "color": _BLUE, "shrinkA": 0, "shrinkB": 0})
    words = f"{QUIET} is done {one.describe_duration(QUIET)}"
    panel.text(0.03, 0.92, words, transform=panel.transAxes, color=_BLUE, fontweight="bold", fontsize=13, va="top")


def _counts(starts: Sequence[float], until: float) -> tuple[list[float], list[int]]:
    return [0.0, *starts, until], [*range(len(starts) + 1), len(starts)]


def _format_axes(panel: Any, until: float) -> None:
    """Format the axes of a panel: seconds up to *until*, and counts from 0."""
    panel.set_xlim(0, until)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Any, panel: Any) -> None:
    """Add one legend below all panels of *figure*, made from the lines of *panel*."""
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=11)
