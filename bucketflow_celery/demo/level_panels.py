"""The first act in the chart: what started against what its limit allows, a panel for each level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from bucketflow.algorithm.window import Start
from bucketflow_celery.config.levels import Level
from bucketflow_celery.demo import style
from bucketflow_celery.demo.envelope import envelope
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import label, rate
from bucketflow_celery.demo.summary import Summary

__all__ = ["COLUMNS", "draw_levels", "panel_rows", "panels_of"]

#: Panels that fit on a page; further levels are left out.
MOST = 9

COLUMNS = 3


def panels_of(ledger: Ledger) -> Sequence[Level]:
    """Return the levels that get a panel."""
    return ledger.levels[:MOST]


def panel_rows(ledger: Ledger) -> int:
    """Return how many rows of panels there are."""
    return -(-len(panels_of(ledger)) // COLUMNS)


def draw_levels(figure: Any, ledger: Ledger, summary: Summary) -> None:
    """Draw a run into *figure*."""
    levels = panels_of(ledger)
    panels = list(figure.subplots(panel_rows(ledger), COLUMNS, sharex=True, squeeze=False).flat)
    for panel, level in zip(panels, levels, strict=False):
        _draw_level(panel, ledger, level, summary.seconds)
    for panel in panels[len(levels) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(levels) - COLUMNS) : len(levels)]:
        panel.set_xlabel("seconds since the first task was sent")
        panel.tick_params(labelbottom=True)
    for panel in panels[: len(levels) : COLUMNS]:
        panel.set_ylabel("tokens so far")
    title = f"What started against what its limit allows: {summary.sent} tasks in {summary.seconds:.1f} s"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    style.legend(figure, panels[0])


def _draw_level(panel: Any, ledger: Ledger, level: Level, until: float) -> None:
    started = ledger.started(level)
    sent = sorted(Start(at, order.cost) for at, order in map(ledger.sent.__getitem__, ledger.ids(level)))
    panel.step(*_sums(sent, until), where="post", label="sent", color=style.GREY, linewidth=1.2, linestyle=style.DOTTED)
    panel.step(*_sums(started, until), where="post", label="started", color=style.BLUE, linewidth=2.0)
    corners = envelope(level.limit, started, until)
    name = "limit: capacity + rate × time (level while the bucket is full)"
    panel.plot(*zip(*corners, strict=True), label=name, color=style.ORANGE, linewidth=1.4, linestyle=style.DASHED)
    panel.set_title(label(level), loc="left", fontweight="bold", fontsize=11)
    panel.set_title(rate(level), loc="right", fontsize=10)
    style.dress(panel, until)


def _sums(starts: Sequence[Start], until: float) -> tuple[list[float], list[float]]:
    sums = list(accumulate((start.cost for start in starts), initial=0.0))
    return [0.0, *(start.at for start in starts), until], [*sums, sums[-1]]
