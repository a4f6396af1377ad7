"""Exact check of recorded starts against a limit, over all windows in one pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bucketflow.limit import Limit

__all__ = ["Start", "Window", "worst_window"]


class Start(NamedTuple):
    """A start *at* a time in seconds, which took *cost* tokens."""

    at: float
    cost: float


@dataclass(frozen=True, slots=True)
class Window:
    """
    The window between two starts, both included.

    Attributes:
        first: Time of the first start, in seconds.
        last: Time of the last start, in seconds.
        cost: Tokens of all starts in the window.
        allowed: Tokens that the limit grants in the window: capacity + fill_rate × length.
    """

    first: float
    last: float
    cost: float
    allowed: float

    @property
    def over(self) -> float:
        """Tokens above the limit; negative if the cost is below it."""
        return self.cost - self.allowed


def worst_window(limit: Limit, starts: Sequence[tuple[float, float]]) -> Window | None:
    """
    Return the window that exceeds *limit* most, or comes closest to it; ``None`` without starts.

    All windows are considered. Let ``C_j`` be the tokens of the first j starts. The excess of the window from start i
    to start j is ``(C_j - rate × t_j) - (C_(i-1) - rate × t_i) - capacity``. So the worst window that ends at j begins
    at the i with the smallest second bracket so far.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        starts: Time in seconds and cost in tokens of each start, ordered by time.
    """
    worst: Window | None = None
    smallest, first, cost_before = math.inf, 0.0, 0.0
    total = 0.0
    for at, cost in starts:
        if total - limit.fill_rate * at < smallest:
            smallest, first, cost_before = total - limit.fill_rate * at, at, total
        total += cost
        window = Window(first, at, total - cost_before, limit.capacity + limit.fill_rate * (at - first))
        if worst is None or window.over > worst.over:
            worst = window
    return worst
