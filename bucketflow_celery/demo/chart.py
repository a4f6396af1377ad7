"""The chart: the first act above, the second below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.level_panels import COLUMNS, draw_levels, panel_rows
from bucketflow_celery.demo.side_panels import draw_sides
from bucketflow_celery.demo.sides import Side
from bucketflow_celery.demo.summary import Summary

__all__ = ["draw"]


def draw(ledger: Ledger, summary: Summary, sides: Sequence[Side], path: Path) -> None:
    """
    Write the chart of both acts as PNG.

    Args:
        ledger: The first act.
        summary: Its figures.
        sides: The second act.
        path: The file; its directory exists.
    """
    heights = [1.2 + 3.2 * panel_rows(ledger), 4.8]
    figure = Figure(figsize=(1.0 + 4.2 * COLUMNS, sum(heights)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.15))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.03).flat
    draw_levels(above, ledger, summary)
    draw_sides(below, sides)
    figure.savefig(path, dpi=130)
