"""What happens to a refused task: it is held, deferred, parked, or fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.errors import ThrottleTimeout

__all__ = ["Defer", "Fail", "Hold", "Outcome", "Park", "Refusal", "exceeds_max_wait", "on_refusal"]

#: Seconds. A shorter wait is held: it is not worth a trip to the broker.
SHORT_WAIT = 0.05

#: Seconds. A shorter wait is held if the task has made the trip already: clocks differ, and other tasks may be late.
SHORT_WAIT_WITH_RESERVATION = 5.0

#: The factor by which a task with a reservation may exceed its ``max_wait``.
MAX_WAIT_GRACE = 1.1


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the message in the worker."""


@dataclass(frozen=True, slots=True)
class Park:
    """Store the message in the backlog of its queue."""


@dataclass(frozen=True, slots=True)
class Defer:
    """Return the message to the broker, due in *countdown* seconds."""

    countdown: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Fail the task with *error*."""

    error: ThrottleTimeout


Outcome: TypeAlias = Hold | Park | Defer | Fail


@dataclass(frozen=True, slots=True)
class Refusal:
    """
    The facts of one refusal.

    Attributes:
        level: The level that binds.
        wait: Seconds until asking again is worth it.
        waited: Seconds the task has waited so far.
        has_reservation: Whether the task came with a reservation at that level.
    """

    level: Level
    wait: float
    waited: float
    has_reservation: bool = False


def exceeds_max_wait(
    policy: ThrottlePolicy, level: Level, wait: float, *, has_reservation: bool = False
) -> Fail | None:
    """
    Return the failure of a task that would wait *wait* seconds in total, if its ``max_wait`` does not allow that.

    A task with a reservation gets 10 % grace, so that a small delay does not waste the reserved start.
    """
    if policy.max_wait is None or wait <= policy.max_wait * (MAX_WAIT_GRACE if has_reservation else 1):
        return None
    return Fail(ThrottleTimeout(level.name, wait, policy.max_wait))


def on_refusal(policy: ThrottlePolicy, refusal: Refusal, max_countdown: float) -> Outcome:
    """
    Decide what happens to a refused task.

    Args:
        policy: What limits the task.
        refusal: The facts.
        max_countdown: Longest countdown in seconds. A task that returns before its reservation keeps it.
    """
    level, wait, has_reservation = refusal.level, refusal.wait, refusal.has_reservation
    failure = exceeds_max_wait(policy, level, refusal.waited + wait, has_reservation=has_reservation)
    if failure is not None:
        return failure
    if policy.parks:
        return Park()
    short = SHORT_WAIT_WITH_RESERVATION if has_reservation else SHORT_WAIT
    if level.blocks_queue or policy.on_limit == "hold" or wait <= short:
        return Hold()
    return Defer(min(wait, max_countdown))
