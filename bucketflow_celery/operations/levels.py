"""
Level view: the tokens of one level, and how far ahead start times are reserved at it.

:meth:`bucketflow_celery.Throttle.peek` returns one for each level of a path.
"""

from __future__ import annotations

from dataclasses import dataclass

from bucketflow.algorithm.gcra import tokens_at
from bucketflow.limit import SECOND
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import LevelState

__all__ = ["LevelView", "level_view"]


@dataclass(frozen=True, slots=True)
class LevelView:
    """
    The state of one level.

    Attributes:
        level: The level: its name, the key of its bucket, its limit.
        tokens: Tokens in the bucket now.
        reserved_for: Seconds until the last reservation at this level; 0 if there is none.
    """

    level: Level
    tokens: float
    reserved_for: float


def level_view(level: Level, state: LevelState, now: int) -> LevelView:
    """
    Return the view of *level*.

    Args:
        level: The level, with the limit in force.
        state: The level's state, as the store returned it.
        now: The store's time when it returned *state*, in µs.
    """
    state = state.rebased_on(level.limit, now)
    return LevelView(level, tokens_at(level.limit, state.full_at, now), max(0.0, state.reserved_until - now) / SECOND)
