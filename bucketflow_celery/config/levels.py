"""A level: one token bucket on the path of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.config.limit import Limit

__all__ = ["Level", "LevelName", "check_cost", "quoted"]

LevelName: TypeAlias = Literal["all", "queue", "tenant", "task"]


@dataclass(frozen=True, slots=True)
class Level:
    """
    One bucket on the path of a task.

    Attributes:
        name: Name of the level, one of four.
        key: Key of the bucket in the store.
        limit: Limit of the bucket.
    """

    name: LevelName
    key: str
    limit: Limit

    @property
    def blocks_queue(self) -> bool:
        """Whether a refusal at this level blocks the whole queue (head-of-line blocking): no task of it can start."""
        return self.name in ("all", "queue")


def quoted(name: str) -> str:
    """Return *name* quoted as a part of a key, so that it cannot form another key or a hash tag."""
    return quote(name, safe="@ ")


def check_cost(path: tuple[Level, ...], cost: float) -> None:
    """
    Raise if a level of *path* can never grant *cost* tokens.

    Raises:
        CostExceedsCapacity: The error names the bucket and its capacity.
    """
    for level in path:
        if cost > level.limit.capacity:
            raise CostExceedsCapacity(level.key, cost, level.limit.capacity)
