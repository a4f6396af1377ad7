"""What becomes of a refused task: it is held, it returns to the broker, or it is given up. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.errors import ThrottleTimeout

__all__ = ["Defer", "Fail", "Hold", "Refused", "exceeds_max_wait", "on_refusal"]

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
class Defer:
    """Send it to the broker, to come back in *countdown* seconds."""

    countdown: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Fail the task with *error*."""

    error: ThrottleTimeout


Refused: TypeAlias = Hold | Defer | Fail


def exceeds_max_wait(policy: ThrottlePolicy, level: Level, wait: float, *, had_place: bool = False) -> Fail | None:
    """
    Defer the end of a task that would wait *wait* seconds in all, if that is more than it may.

    One that *had_place* was promised to start in time: for being a little late it is not given up, its place wasted.
    """
    if policy.max_wait is None or wait <= policy.max_wait * (GRACE if had_place else 1):
        return None
    return Fail(ThrottleTimeout(level.name, wait, policy.max_wait))


def on_refusal(  # noqa: PLR0913 - the facts of one refusal
    policy: ThrottlePolicy, level: Level, wait: float, waited: float, *, had_place: bool, cap: float
) -> Refused:
    """
    Decide about a task that *level* has refused.

    Args:
        policy: What the task needs.
        level: The level that binds.
        wait: Seconds until it may ask again.
        waited: Seconds it has waited already.
        had_place: Whether it came with a place in that level's line.
        cap: Longest countdown in seconds; one that returns early keeps its place.
    """
    if (end := exceeds_max_wait(policy, level, waited + wait, had_place=had_place)) is not None:
        return end
    if level.blocks_queue or policy.on_limit == "hold" or wait <= (NEARLY if had_place else SHORT):
        return Hold()
    return Defer(min(wait, cap))
