"""
BucketFlow beside other libraries: ``python -m benchmarks.library [part ...]``, from the root of the repository.

Without arguments, every part runs in a process of its own, and ``docs/benchmarks.md`` is written from their results.
With arguments, only these parts run. ``document`` writes the page from the results so far. The peers are listed in
``benchmarks/requirements.txt``. A library that is not installed is left out and named on the page.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from benchmarks.library import parts, results

DOCUMENT = "document"
ROOT = Path(__file__).resolve().parents[2]


def main(names: list[str]) -> int:
    """Run the parts *names*; return 2 if there is no such part."""
    unknown = [name for name in names if name not in parts.PARTS and name != DOCUMENT]
    if unknown:
        print(f"no such part: {', '.join(unknown)}; there are {', '.join(parts.PARTS)} and {DOCUMENT}", file=sys.stderr)
        return 2
    if len(names) == 1:
        _run(names[0])
        return 0
    if not names:
        results.clear()
    for name in names or [*parts.PARTS, DOCUMENT]:
        subprocess.run([sys.executable, "-m", "benchmarks.library", name], cwd=ROOT, check=True)
    return 0


def _run(name: str) -> None:
    begin = time.monotonic()
    if name == DOCUMENT:
        from benchmarks.library import document  # noqa: PLC0415 - it imports redis-py, too early for the parts

        document.write()
    else:
        parts.run(name)
    print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
