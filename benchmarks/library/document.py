"""``docs/benchmarks.md``, made from a template and the results of the parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from benchmarks.library import charts, machine, parts, results, tables
from benchmarks.library.results import Row
from benchmarks.library.targets import evaluate

TEMPLATE = Path(__file__).with_suffix(".md.in")
DOCS = Path(__file__).resolve().parents[2] / "docs"


def write(docs: Path = DOCS, found: Path = results.FOLDER) -> None:
    """Write the page and its charts."""
    rows = {row.key: row for part in parts.PARTS for row in results.load(part, found)}
    charts.draw(rows, docs / "benchmarks")
    (docs / "benchmarks.md").write_text(text(rows))
    print(f"written: {docs / 'benchmarks.md'}")


def text(rows: Mapping[str, Row]) -> str:
    """Return the text of the page."""
    evaluated = evaluate(rows, compiled=machine.compiled())
    listed = {
        "targets": tables.target_table(evaluated),
        "peers": tables.peers(),
        "left_out": tables.left_out(rows.values()),
        "machine": tables.facts("the run", machine.machine()),
        "versions": tables.listed(machine.versions()),
        "parts": ", ".join(f"`{name}`" for name in parts.PARTS),
    }
    return Template(TEMPLATE.read_text()).substitute(tables.sections(rows), **listed)
