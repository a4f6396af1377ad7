"""What the chart's panels have in common."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import MaxNLocator

__all__ = ["BLUE", "DASHED", "DOTTED", "GREY", "ORANGE", "dress", "legend"]

# Told apart by anybody, on paper too: each line has a colour of Okabe and Ito's, and a style.
GREY, BLUE, ORANGE = "#8c8c8c", "#0072b2", "#d55e00"
DOTTED, DASHED = (0, (1, 1)), (0, (5, 2))


def dress(panel: Any, until: float) -> None:
    """Give a panel its axes: seconds up to *until*, and counts from 0."""
    panel.set_xlim(0, until)
    panel.set_ylim(bottom=0)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.grid(visible=True, color="#e4e4e4", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def legend(figure: Any, panel: Any) -> None:
    """Explain the lines of all panels of *figure* by those of *panel*, below them."""
    handles, names = panel.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=11)
