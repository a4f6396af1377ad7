"""The chart: what started against what its limit allows, a panel for each level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bucketflow.windows import Start
from bucketflow_celery.demo.envelope import envelope
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import label, rate
from bucketflow_celery.demo.summary import Summary
from bucketflow_celery.limits import Level

__all__ = ["MOST", "draw"]

#: Panels that fit on a page; further levels are left out.
MOST = 9

# Told apart by anybody, on paper too: each line has a colour of Okabe and Ito's, and a style.
_SENT = {"color": "#8c8c8c", "linewidth": 1.2, "linestyle": (0, (1, 1))}
_STARTED = {"color": "#0072b2", "linewidth": 2.0}
_LIMIT = {"color": "#d55e00", "linewidth": 1.4, "linestyle": (0, (5, 2))}


def draw(ledger: Ledger, summary: Summary, path: Path) -> None:
    """
    Write the chart of a run as PNG.

    Args:
        ledger: The run.
        summary: Its figures.
        path: The file; its directory exists.
    """
    levels = ledger.levels[:MOST]
    columns = min(3, len(levels))
    rows = -(-len(levels) // columns)
    figure = Figure(figsize=(1.0 + 4.2 * columns, 1.6 + 3.2 * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for panel, level in zip(panels, levels, strict=False):
        _draw_level(panel, ledger, level, summary.seconds)
    for panel in panels[len(levels) :]:
        panel.set_axis_off()
    for panel in panels[max(0, len(levels) - columns) : len(levels)]:
        panel.set_xlabel("seconds since the first task was sent")
        panel.tick_params(labelbottom=True)
    for panel in panels[: len(levels) : columns]:
        panel.set_ylabel("tokens so far")
    title = f"What started against what its limit allows: {summary.sent} tasks in {summary.seconds:.1f} s"
    figure.suptitle(title, fontsize=14, fontweight="bold")
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=11)
    figure.savefig(path, dpi=130)


def _draw_level(panel: Any, ledger: Ledger, level: Level, until: float) -> None:
    started = ledger.started(level)
    sent = sorted(Start(at, order.cost) for at, order in map(ledger.sent.__getitem__, ledger.ids(level)))
    panel.step(*_sums(sent, until), where="post", label="sent", **_SENT)
    panel.step(*_sums(started, until), where="post", label="started", **_STARTED)
    corners = envelope(level.limit, started, until)
    name = "limit: capacity + rate × time (level while the bucket is full)"
    panel.plot(*zip(*corners, strict=True), label=name, **_LIMIT)
    panel.set_title(label(level), loc="left", fontweight="bold", fontsize=11)
    panel.set_title(rate(level), loc="right", fontsize=10)
    panel.set_xlim(0, until)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _sums(starts: Sequence[Start], until: float) -> tuple[list[float], list[float]]:
    sums = list(accumulate((start.cost for start in starts), initial=0.0))
    return [0.0, *(start.at for start in starts), until], [*sums, sums[-1]]
