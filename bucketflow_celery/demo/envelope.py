"""The line that tokens started, in sum, must not cross. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bucketflow.algorithm.window import Start
from bucketflow.limit import Limit

__all__ = ["envelope"]


def envelope(limit: Limit, starts: Sequence[Start], until: float) -> list[tuple[float, float]]:
    """
    Return the corners of the line that tokens started, in sum, must not cross.

    It is what has started plus what the bucket holds: it climbs at the fill rate, and stays level while that is full.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        starts: In the order of time.
        until: Where the line ends, in seconds; not before the last start.

    Returns:
        Seconds and tokens, in the order of time; length >= 2.
    """
    total, tokens, before = 0.0, limit.capacity, 0.0
    corners = [(0.0, limit.capacity)]
    for at, cost in [*starts, Start(until, 0.0)]:
        full_at = before + (limit.capacity - tokens) / limit.fill_rate
        if before < full_at < at:
            corners.append((full_at, total + limit.capacity))
        tokens = min(limit.capacity, tokens + limit.fill_rate * (at - before))
        corners.append((at, total + tokens))
        total, tokens, before = total + cost, tokens - cost, at
    return corners
