"""Whether starts obeyed a limit in every window there is, exactly and in one pass. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bucketflow.limit import Limit

__all__ = ["Start", "Window", "worst_window"]


class Start(NamedTuple):
    """A task that started: *at* in seconds, popping *cost* tokens."""

    at: float
    cost: float


@dataclass(frozen=True, slots=True)
class Window:
    """
    What started between two starts, both included.

    Attributes:
        first: When it begins, in seconds.
        last: When it ends, in seconds.
        cost: Tokens of what started in it.
        allowed: Tokens the limit grants in it: capacity + fill_rate × length.
    """

    first: float
    last: float
    cost: float
    allowed: float

    @property
    def over(self) -> float:
        """Tokens above the limit; negative: below it."""
        return self.cost - self.allowed


def worst_window(limit: Limit, starts: Sequence[tuple[float, float]]) -> Window | None:
    """
    Return the window that comes closest to *limit*, or exceeds it most; ``None`` if nothing started.

    All windows are looked at. With ``C`` the tokens started so far, the excess of the window from the i-th to the j-th
    start is ``(C_j - rate × t_j) - (C_(i-1) - rate × t_i) - capacity``: so for each j the best i is the one whose
    second bracket is the smallest yet.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        starts: Time in seconds and cost in tokens of each, in the order of time.
    """
    worst: Window | None = None
    base, base_at, base_cost = math.inf, 0.0, 0.0
    total = 0.0
    for at, cost in starts:
        if total - limit.fill_rate * at < base:
            base, base_at, base_cost = total - limit.fill_rate * at, at, total
        total += cost
        window = Window(base_at, at, total - base_cost, limit.capacity + limit.fill_rate * (at - base_at))
        if worst is None or window.over > worst.over:
            worst = window
    return worst
