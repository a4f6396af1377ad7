"""A level, one token bucket on the path of a task; and the policy of a task, its path and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from urllib.parse import quote

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.config.choices import OnLimit
from bucketflow_celery.config.limit import Limit

__all__ = ["Level", "LevelName", "ThrottlePolicy", "check_cost", "quoted"]

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


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """
    The limits and options that apply to one task.

    Attributes:
        path: Levels that the task passes, root first; length 0 if nothing limits it.
        cost: Tokens that it takes from each level.
        max_wait: Maximum total wait in seconds; ``None`` for unlimited.
        on_limit: ``"retry"``, ``"hold"`` or ``"park"``.
        tenant: Tenant of the task, if any.
        paused: Level at which the task is paused, if it is.
        task: Name of the task type that is limited: of a chunk the one that it calls.
        calls: Calls of that task; more than 1 for a chunk.
        purged_at: When such tasks were purged last, in µs of the store's clock; 0: they were not.
    """

    path: tuple[Level, ...]
    cost: float = 1.0
    max_wait: float | None = None
    on_limit: OnLimit = "retry"
    tenant: str | None = None
    paused: LevelName | None = None
    task: str = ""
    calls: int = 1
    purged_at: int = 0

    @property
    def parks(self) -> bool:
        """Whether the task is parked on refusal."""
        return self.on_limit == "park"

    @property
    def is_worth_parking(self) -> bool:
        """Whether the task is parked on refusal, and a limit or a pause can refuse it."""
        return self.parks and (bool(self.path) or self.paused is not None)


def quoted(name: str) -> str:
    """Return *name* quoted as a part of a key, so that it cannot form another key or a hash tag."""
    return quote(name, safe="@ ")


def check_cost(path: tuple[Level, ...], cost: float, calls: int = 1) -> None:
    """
    Raise if a level of *path* can never grant *cost* tokens.

    Args:
        path: The levels.
        cost: Tokens that a message takes from each.
        calls: Calls that the message makes, for the advice in the error.

    Raises:
        CostExceedsCapacity: The error names the bucket and its capacity, and for a chunk what can be done.
    """
    for level in path:
        if cost > level.limit.capacity:
            advice = () if calls == 1 else (_advice(path, cost, calls),)
            raise CostExceedsCapacity(level.key, cost, level.limit.capacity, *advice)


def _advice(path: tuple[Level, ...], cost: float, calls: int) -> str:
    fitting = int(min(level.limit.capacity for level in path) * calls / cost)
    smaller = f"use chunks of at most {fitting} call(s) in place of {calls}, or " if fitting else ""
    return f"{smaller}give its limits a capacity of at least {cost:g}"
