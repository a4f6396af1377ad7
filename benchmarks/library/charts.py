"""The charts of the page: horizontal bars with their figures, ours in colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.library.results import Entry, Row

_COLOURS = {"ours": "#0b6e99", "baseline": "#8a8a8a", "peer": "#c9d3da"}
_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9,
    "svg.fonttype": "none",  # text, not outlines: a tenth of the size, and searchable
    "svg.hashsalt": "bucketflow",  # constant, so that a new run changes the figures only
}


@dataclass(frozen=True)
class Panel:
    """
    One of the panels of a chart.

    Attributes:
        row: The key of its row.
        title: Its title.
        value: Reads the figure of an entry; ``None`` leaves the entry out.
        shown: Formats the figure.
        lower_is_better: Whether the best figure is the lowest.
    """

    row: str
    title: str
    value: Callable[[Entry], float | None]
    shown: Callable[[float], str]
    lower_is_better: bool = True


def _nanoseconds(entry: Entry) -> float | None:
    seconds = entry.values["seconds"]
    return None if seconds is None else seconds * 1e9


def _longest(entry: Entry) -> float | None:
    return None if entry.values["refused"] else entry.values["longest"]  # a limiter that refuses waits less


def _column(name: str) -> Callable[[Entry], float | None]:
    return lambda entry: entry.values.get(name)


def _thousands(figure: float) -> str:
    return f"{figure:,.0f}"


def _times(figure: float) -> str:
    return f"{figure:.1f} ×"


CHARTS = {
    "in-memory": [
        Panel("memory-1", "in memory, 1 thread: ns a call", _nanoseconds, _thousands),
        Panel("memory-asyncio", "in memory, asyncio: ns a call", _nanoseconds, _thousands),
    ],
    "redis": [
        Panel("redis-16", "Redis, 16 threads: calls a second", _column("rate"), _thousands, lower_is_better=False),
        Panel(
            "redis-asyncio-64-on-1", "Redis, 64 tasks on one bucket", _column("rate"), _thousands, lower_is_better=False
        ),
    ],
    "waiting": [
        Panel("waiting-threads", "8 threads wait: longest wait, in fair waits", _longest, _times),
        Panel("waiting-redis-threads", "the same through Redis", _longest, _times),
    ],
}


def draw(rows: Mapping[str, Row], folder: Path) -> list[Path]:
    """Draw the charts whose rows were measured into *folder*; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, panels in CHARTS.items():
        measured = [panel for panel in panels if panel.row in rows]
        if measured:
            files.append(folder / f"{name}.svg")
            _chart(rows, measured, files[-1])
    return files


def _chart(rows: Mapping[str, Row], panels: Sequence[Panel], file: Path) -> None:
    with plt.rc_context(_STYLE):
        bars = max(len(rows[panel.row].entries) for panel in panels)
        figure, axes = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 0.7 + 0.27 * bars), squeeze=False)
        for panel, axis in zip(panels, axes[0], strict=True):
            _bars(axis, panel, rows[panel.row].entries)
        figure.tight_layout(w_pad=2)
        figure.savefig(file, facecolor="white", metadata={"Date": None})
        plt.close(figure)


def _bars(axis: Axes, panel: Panel, entries: Sequence[Entry]) -> None:
    bars = [(value, entry) for entry in entries if (value := panel.value(entry)) is not None]
    bars.sort(key=lambda bar: (bar[0], bar[1].name), reverse=panel.lower_is_better)  # the best at the top
    names, values = [entry.name for _, entry in bars], [value for value, _ in bars]
    drawn = axis.barh(names, values, color=[_COLOURS[entry.role] for _, entry in bars], height=0.7)
    axis.bar_label(drawn, [panel.shown(value) for value in values], padding=3)
    for label, (_, entry) in zip(axis.get_yticklabels(), bars, strict=True):
        label.set_fontweight("bold" if entry.role == "ours" else "normal")
    axis.set_title(panel.title, loc="left", fontsize=10)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(left=False)
    axis.set_xlim(0, max(values) * 1.25)
    axis.set_xticks([])
