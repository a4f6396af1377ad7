"""The throttling policy of one task, resolved from limits, options and rules."""

from __future__ import annotations

from dataclasses import dataclass

from bucketflow_celery.config.levels import Level, LevelName

__all__ = ["ThrottlePolicy"]


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
    """

    path: tuple[Level, ...]
    cost: float = 1.0
    max_wait: float | None = None
    on_limit: str = "retry"
    tenant: str | None = None
    paused: LevelName | None = None

    @property
    def parks(self) -> bool:
        """Whether the task is parked on refusal."""
        return self.on_limit == "park"

    @property
    def is_worth_parking(self) -> bool:
        """Whether the task is parked on refusal, and a limit or a pause can refuse it."""
        return self.parks and (bool(self.path) or self.paused is not None)
