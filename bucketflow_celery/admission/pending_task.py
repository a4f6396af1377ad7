"""A task that is pending in the worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bucketflow_celery.config.policy import Passage

__all__ = ["Entry"]


@dataclass(slots=True, eq=False)
class Entry:
    """
    One task at the gate.

    Attributes:
        request: Celery's request.
        queue: The queue it came from.
        passage: What it needs in order to start.
        arrived: When it came to this worker, in seconds of the monotonic clock.
        since: When it was first refused anywhere, in seconds since the Unix epoch; ``None`` if it never was.
        dues: The places it has in the lines of levels that send tasks back, by key, in µs of the store's clock.
        ready_at: Not worth asking before, in seconds of the monotonic clock.
        held: Whether it stands in a line.
    """

    request: Any
    queue: str
    passage: Passage
    arrived: float
    since: float | None = None
    dues: dict[str, int] = field(default_factory=dict)
    ready_at: float = 0.0
    held: bool = False
