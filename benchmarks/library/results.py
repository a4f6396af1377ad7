"""The results of a run: rows of entries of numbers, kept as JSON between the parts of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.library.timing import Role

#: The folder of the JSON files.
FOLDER = Path(__file__).resolve().parents[2] / "bench-output"

OURS = "BucketFlow"


@dataclass(frozen=True)
class Entry:
    """
    The figures of one implementation in a row.

    Attributes:
        name: Its name in the tables.
        role: See :class:`benchmarks.library.timing.Runner`.
        values: Figures by column; ``None`` where there is none.
        note: A remark that the tables show beside the figures.
    """

    name: str
    role: Role
    values: Mapping[str, float | None]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """
    Implementations that were measured together.

    Attributes:
        key: Its name in the code.
        title: Its name on the page.
        entries: In no particular order.
        left_out: Why an implementation was left out, by name.
    """

    key: str
    title: str
    entries: Sequence[Entry]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Entry | None:
        """Return the entry of *name*, if there is one."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def value(self, name: str, column: str) -> float | None:
        """Return one figure, if there is one."""
        entry = self.of(name)
        return None if entry is None else entry.values.get(column)

    def peers(self) -> list[Entry]:
        """Return the entries of the peers."""
        return [entry for entry in self.entries if entry.role == "peer"]


def clear(folder: Path = FOLDER) -> None:
    """Delete the results of earlier runs, so that a page shows one run."""
    for path in folder.glob("*.json"):
        path.unlink()


def save(part: str, rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """Save the *rows* of *part*, replacing those of an earlier run."""
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


def load(part: str, folder: Path = FOLDER) -> list[Row]:
    """Return the rows of *part*; none if it has not run."""
    path = folder / f"{part}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return [Row(**{**row, "entries": [Entry(**entry) for entry in row["entries"]]}) for row in rows]
