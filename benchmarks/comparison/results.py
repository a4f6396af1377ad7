"""What a run found out: rows of entries of numbers, kept as JSON between the parts of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from comparison.race import Role

#: Where ``compare.py`` keeps them.
FOLDER = Path(__file__).resolve().parent.parent.parent / "bench-output"

OURS = "BucketFlow"


@dataclass(frozen=True)
class Entry:
    """
    What a row says of one contestant.

    Attributes:
        name: As the tables show it.
        role: Floors are what must be spent anyway; peers are other libraries.
        values: By the names in ``document.COLUMNS``; ``None`` where there is none.
        note: What the numbers do not say.
    """

    name: str
    role: Role
    values: Mapping[str, float | None]
    note: str = ""


@dataclass(frozen=True)
class Row:
    """
    Contestants that were measured in turns, in one process.

    Attributes:
        key: Names it in the code.
        title: Names it in the document.
        entries: In no particular order.
        left_out: Why, by the names of those that could not take part.
    """

    key: str
    title: str
    entries: Sequence[Entry]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> Entry | None:
        """Return the entry of *name*, if there is one."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def value(self, name: str, column: str) -> float | None:
        """Return one number, if there is one."""
        entry = self.of(name)
        return None if entry is None else entry.values.get(column)

    def peers(self) -> list[Entry]:
        """Return the entries of other libraries."""
        return [entry for entry in self.entries if entry.role == "peer"]


def clear(folder: Path = FOLDER) -> None:
    """Forget what earlier runs have found: a page is made of one run."""
    for path in folder.glob("*.json"):
        path.unlink()


def save(part: str, rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """Keep the *rows* of *part*, in place of what an earlier run has left."""
    folder.mkdir(exist_ok=True)
    (folder / f"{part}.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


def load(part: str, folder: Path = FOLDER) -> list[Row]:
    """Return the rows of *part*; none if it has not run."""
    path = folder / f"{part}.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    return [Row(**{**row, "entries": [Entry(**entry) for entry in row["entries"]]}) for row in rows]
