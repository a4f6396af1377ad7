"""The second act on a screen: a row for each tenant, retry and park side by side."""

from __future__ import annotations

from rich.console import RenderableType
from rich.table import Table

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import NOISY, QUIET, SIDES
from bucketflow_celery.demo.sides import FEW, FLOOD, compare
from bucketflow_celery.demo.widgets import bar, table

__all__ = ["SideRows"]

_SENT = {NOISY: FLOOD, QUIET: FEW}


class SideRows:
    """
    How far each tenant is.

    Args:
        ledger: The run.
    """

    title = "one noisy tenant, retry against park"

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def table(self, _now: float, _most: int) -> Table:
        """Return a row a tenant."""
        rows = table("tenant", *(heading for side in SIDES for heading in (side, "")))
        for tenant, all_of_it in _SENT.items():
            cells: list[RenderableType] = []
            for side in compare(self._ledger):
                started = len(side.starts[tenant])
                cells += [f"{started} of {all_of_it}", bar(started, all_of_it, 20)]
            rows.add_row(tenant, *cells)
        return rows

    def words(self, _now: float) -> list[str]:
        """Return what the rows say, for a log."""
        return [
            f"{side.on_limit}: " + ", ".join(f"{tenant} {len(starts)}" for tenant, starts in side.starts.items())
            for side in compare(self._ledger)
        ]
