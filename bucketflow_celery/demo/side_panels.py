"""The second act in the chart: how each tenant got on, retry to the left, park to the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bucketflow_celery.demo import style
from bucketflow_celery.demo.limits import NOISY, QUIET, path_of, rate
from bucketflow_celery.demo.sides import FEW, Side

__all__ = ["draw_sides"]


def draw_sides(figure: Any, sides: Sequence[Side]) -> None:
    """Draw what became of the same workload under each ``on_limit`` into *figure*."""
    panels = figure.subplots(1, len(sides), sharex=True, sharey=True, squeeze=False)[0]
    until = max(at for side in sides for starts in side.starts.values() for at in (*starts, 1.0))
    for panel, side in zip(panels, sides, strict=True):
        _draw_side(panel, side, until)
        panel.set_xlabel("seconds since the first task was sent")
    panels[0].set_ylabel("tasks started so far")
    figure.suptitle("One noisy tenant: how long the quiet one waits", fontsize=14, fontweight="bold")
    style.legend(figure, panels[0])


def _draw_side(panel: Any, side: Side, until: float) -> None:
    (queue,) = path_of(QUIET, side.on_limit)
    panel.step(*_counts(side.starts[NOISY], until), where="post", label=NOISY, color=style.GREY, linewidth=2.0)
    quiet = {"label": QUIET, "color": style.BLUE, "linewidth": 2.5, "clip_on": False}  # it lies on the axis for long
    panel.step(*_counts(side.starts[QUIET], until), where="post", **quiet)
    began = side.began[QUIET]
    fair = (began, began + side.fair), (0, FEW)
    panel.plot(*fair, label=f"{QUIET}, fair share", color=style.ORANGE, linewidth=1.4, linestyle=style.DASHED)
    _draw_wait(panel, side, until)
    panel.set_title(f'on_limit="{side.on_limit}"', loc="left", fontweight="bold", fontsize=11)
    panel.set_title(f"queue {rate(queue)}", loc="right", fontsize=10)
    style.dress(panel, until)


def _draw_wait(panel: Any, side: Side, until: float) -> None:
    """Mark the quiet tenant's time from its first sending to its last start."""
    began, height = side.began[QUIET], FEW * 1.3
    ends = {"xy": (min(until, began + side.done_after(QUIET)), height), "xytext": (began, height)}
    panel.annotate("", **ends, arrowprops={"arrowstyle": "<->", "color": style.BLUE, "shrinkA": 0, "shrinkB": 0})
    words = f"{QUIET} is done {side.done(QUIET)}"
    panel.text(0.03, 0.92, words, transform=panel.transAxes, color=style.BLUE, fontweight="bold", fontsize=13, va="top")


def _counts(starts: Sequence[float], until: float) -> tuple[list[float], list[int]]:
    return [0.0, *starts, until], [*range(len(starts) + 1), len(starts)]
