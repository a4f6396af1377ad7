"""A level on the path of a task: its name, its bucket and its limit."""

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
    One bucket on a task's path.

    Attributes:
        name: Which of the four levels it is.
        key: The bucket's name in the store.
        limit: What it holds, and how fast it fills.
    """

    name: LevelName
    key: str
    limit: Limit

    @property
    def blocks_queue(self) -> bool:
        """Whether a refusal here blocks the whole queue: no other task of it could start (head-of-line blocking)."""
        return self.name in ("all", "queue")


def quoted(name: str) -> str:
    """Return *name* as a part of a key: it cannot spell another key, nor a hash tag."""
    return quote(name, safe="@ ")


def check_cost(path: tuple[Level, ...], cost: float) -> None:
    """
    Raise if a level of *path* can never grant *cost* tokens.

    Raises:
        CostExceedsCapacity: It names the bucket and its capacity.
    """
    for level in path:
        if cost > level.limit.capacity:
            raise CostExceedsCapacity(level.key, cost, level.limit.capacity)
