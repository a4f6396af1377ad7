"""How a level stands, seen from outside: its tokens and its line. Pure."""

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
    A level, seen from outside.

    Attributes:
        level: Its name, bucket and limit.
        tokens: Tokens in the bucket now.
        reserved_for: Seconds until the last reservation at this level; 0 if there is none.
    """

    level: Level
    tokens: float
    reserved_for: float


def level_view(level: Level, state: LevelState, now: int) -> LevelView:
    """Return how *level* stands whose *state* the store told at *now*, in µs of its clock."""
    state = state.rebased_on(level.limit, now)
    return LevelView(level, tokens_at(level.limit, state.full_at, now), max(0.0, state.reserved_until - now) / SECOND)
