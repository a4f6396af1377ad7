"""``docs/benchmarks.md``, made of what the parts of a run have found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from comparison import charts, machine, parts, results, tables
from comparison.goals import verdicts
from comparison.results import Row

TEMPLATE = Path(__file__).with_suffix(".md.in")
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def write(docs: Path = DOCS, found: Path = results.FOLDER) -> None:
    """Write the page and its charts."""
    rows = {row.key: row for part in parts.PARTS for row in results.load(part, found)}
    charts.draw(rows, docs / "benchmarks")
    (docs / "benchmarks.md").write_text(text(rows))
    print(f"written: {docs / 'benchmarks.md'}")


def text(rows: Mapping[str, Row]) -> str:
    """Return the page."""
    judged = verdicts(rows, compiled=machine.compiled())
    listed = {
        "goals": tables.goals(judged),
        "who": tables.who(),
        "left_out": tables.left_out(rows.values()),
        "machine": tables.facts("the run", machine.machine()),
        "versions": tables.listed(machine.versions()),
        "parts": ", ".join(f"`{name}`" for name in parts.PARTS),
    }
    return Template(TEMPLATE.read_text()).substitute(tables.sections(rows), **listed)
