"""What becomes of a refused task: it is held, it returns to the broker, or it is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.policy import Passage
from bucketflow_celery.errors import ThrottleTimeout

__all__ = ["GiveUp", "Hold", "Refused", "Return", "decide", "too_long"]

#: A task whose place comes within so many seconds is not worth a trip to the broker.
SHORT = 0.05

#: Nor is one that has made the trip and finds its place not quite ready: clocks differ, and others may be late.
NEARLY = 5.0

#: How much longer than ``max_wait`` a task may wait that is late for its place.
GRACE = 1.1


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the message in the worker."""


@dataclass(frozen=True, slots=True)
class Return:
    """Send it to the broker, to come back in *countdown* seconds."""

    countdown: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Fail the task with *error*."""

    error: ThrottleTimeout


Refused: TypeAlias = Hold | Return | GiveUp


def too_long(passage: Passage, level: Level, wait: float, *, had_place: bool = False) -> GiveUp | None:
    """
    Return the end of a task that would wait *wait* seconds in all, if that is more than it may.

    One that *had_place* was promised to start in time: for being a little late it is not given up, its place wasted.
    """
    if passage.max_wait is None or wait <= passage.max_wait * (GRACE if had_place else 1):
        return None
    return GiveUp(ThrottleTimeout(level.name, wait, passage.max_wait))


def decide(  # noqa: PLR0913 - the facts of one refusal
    passage: Passage, level: Level, wait: float, waited: float, *, had_place: bool, cap: float
) -> Refused:
    """
    Decide about a task that *level* has refused.

    Args:
        passage: What the task needs.
        level: The level that binds.
        wait: Seconds until it may ask again.
        waited: Seconds it has waited already.
        had_place: Whether it came with a place in that level's line.
        cap: Longest countdown in seconds; one that returns early keeps its place.
    """
    if (end := too_long(passage, level, waited + wait, had_place=had_place)) is not None:
        return end
    if not level.returns or passage.on_limit == "hold" or wait <= (NEARLY if had_place else SHORT):
        return Hold()
    return Return(min(wait, cap))
