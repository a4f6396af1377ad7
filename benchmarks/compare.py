"""
How long a call takes, beside other libraries and beside the least that Python needs: ``python benchmarks/compare.py``.

In memory, in one thread, one level and three. Install ``benchmarks/requirements.txt``; a
library that is not there is left out, and named.
"""

from __future__ import annotations

from comparison import in_memory
from comparison.contestant import Contestant, racer
from comparison.race import Racer, best_peer, named, race
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Run the rows and print them."""
    for title, levels in (("1 level", 1), ("3 levels", 3)):
        standings = race([runner for one in in_memory.SYNC if (runner := _runner(one, levels)) is not None])
        floor, ours, peer = named(standings, in_memory.FLOOR.name), named(standings, "BucketFlow"), best_peer(standings)
        table = Table("limiter", "ns a call", "× floor", title=f"in memory, 1 thread, {title}")
        for one in sorted(standings, key=lambda one: one.typical):
            table.add_row(one.name, f"{one.typical * 1e9:.0f}", f"{one.over(floor):.2f}")
        Console().print(table)
        if peer is not None:
            print(f"BucketFlow takes {ours.over(peer):.2f} times as long as the best peer, {peer.name}")


def _runner(one: Contestant, levels: int) -> Racer | None:
    try:
        return racer(one, levels=levels)
    except (ImportError, FileNotFoundError) as error:
        print(f"{one.name} is left out: {error}")
        return None


if __name__ == "__main__":
    main()
