"""What a task needs in order to start."""

from __future__ import annotations

from dataclasses import dataclass

from bucketflow_celery.config.levels import Level, LevelName

__all__ = ["ThrottlePolicy"]


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """
    What a task needs in order to start.

    Attributes:
        path: The levels it passes, root first; length 0 where nothing limits it.
        cost: Tokens it takes from each of them.
        max_wait: Seconds it may wait in all; ``None``: as long as it takes.
        on_limit: ``"retry"``, ``"hold"`` or ``"park"``.
        tenant: Whom it is for, if anybody.
        paused: The level at which it is paused, if it is.
    """

    path: tuple[Level, ...]
    cost: float = 1.0
    max_wait: float | None = None
    on_limit: str = "retry"
    tenant: str | None = None
    paused: LevelName | None = None

    @property
    def parks(self) -> bool:
        """Whether it is parked when it is refused."""
        return self.on_limit == "park"

    @property
    def is_worth_parking(self) -> bool:
        """Whether it may be parked, and there is something that could keep it from starting."""
        return self.parks and (bool(self.path) or self.paused is not None)
