"""The first act on a screen: a row for each level."""

from __future__ import annotations

import math

from rich.table import Table
from rich.text import Text

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import label
from bucketflow_celery.demo.tasks import peek
from bucketflow_celery.demo.widgets import bar, table

__all__ = ["LevelRows"]

#: Seconds over which the achieved rate is taken.
SPAN = 3.0


class LevelRows:
    """
    How each level stands.

    Args:
        ledger: The run.
    """

    title = "workers under shared limits"

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def table(self, now: float, most: int) -> Table:
        """
        Return a row a level, *most* at most.

        Raises:
            StoreUnavailable: Redis did not answer in time.
        """
        ledger, rates, views = self._ledger, self._achieved(now), peek(self._ledger.paths)
        rows = table("level", "limit", "now", "", "tokens", "waiting", "line", "deliveries")
        for level in ledger.levels[:most]:
            view, rate = views.get(level.key), rates[level.key]
            rows.add_row(
                Text(label(level)),
                f"{level.limit.fill_rate:g}/s",
                f"{rate:.1f}/s",
                bar(rate, level.limit.fill_rate, 8),
                f"{math.floor(view.tokens)} of {level.limit.capacity:g}" if view else "",
                str(ledger.waiting(level)),
                f"{view.reserved_for:.1f} s" if view else "",
                f"{ledger.per_task(level):.2f}",
            )
        if len(ledger.levels) > most:
            rows.add_row(f"and {len(ledger.levels) - most} more")
        return rows

    def words(self, now: float) -> list[str]:
        """Return what the rows say, for a log."""
        rates = self._achieved(now)
        return [f"{label(level)} {rates[level.key]:.1f}/s" for level in self._ledger.levels]

    def _achieved(self, now: float) -> dict[str, float]:
        """Return the tokens a second that started lately, by the level's key."""
        ledger, span = self._ledger, max(1.0, min(SPAN, now))
        return {
            level.key: sum(cost for at, cost in ledger.started(level) if at > now - span) / span
            for level in ledger.levels
        }
