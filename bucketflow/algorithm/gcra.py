"""
The arithmetic of a token bucket: no clock, no lock, no I/O. What decides lives here; every shell asks this module.

A bucket is one number, ``full_at``: the instant, in µs, at which it will be full again. At ``now`` it lacks
``(full_at - now) × fill_rate`` tokens, so an instant in the past is a full bucket, and so is a missing one.
Taking tokens moves ``full_at`` on, giving them back moves it back, time passing needs no bookkeeping at all.

``lua/gcra.lua`` mirrors this file line by line; a property test feeds both the same steps and wants the same bits.

Source: the generic cell rate algorithm (ITU-T I.371), whose theoretical arrival time is ``full_at`` less one
interval, read as a token bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow.errors import CostExceedsCapacity
from bucketflow.limit import SECOND, Limit
from bucketflow.validation import check_initial_tokens

__all__ = ["FULL", "Decision", "burst_tolerance", "consume", "consume_path", "refund", "take", "tokens_at", "wait_for"]

#: The state of a bucket nobody has used.
FULL = 0.0

#: Half the clock's resolution, in µs: rounding in the last bit of a double must not cost a caller a whole µs.
HALF_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Decision:
    """
    The answer to one question.

    Attributes:
        allowed: Whether the tokens were taken, at every level.
        retry_after: Seconds until the same question is granted if nobody else takes tokens meanwhile; 0 if allowed.
            Waiting 1 µs less is refused.
        binding: Index of the level with the longest wait, root first; ``None`` if allowed.
        tokens: Tokens left at each level, root first; length = depth of the path >= 1.
    """

    allowed: bool
    retry_after: float
    binding: int | None
    tokens: tuple[float, ...]


def wait_for(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> int:
    """
    Return the µs, rounded up, until *cost* tokens are in the bucket; 0 if they are there.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        full_at: The bucket, in µs.
        now: µs on the clock that stamped *full_at*. May lie before it: time running backwards earns nothing.
        cost: Tokens, >= 0 and at most the capacity.
    """
    behind = full_at - now if full_at > now else 0.0
    return max(0, math.ceil(behind + cost * SECOND / limit.fill_rate - limit.span - HALF_TICK))


def burst_tolerance(limit: Limit) -> float:
    """Return the most µs that a bucket may need to fill after a grant: more, and :func:`wait_for` is not 0."""
    most = limit.span + HALF_TICK
    while most - limit.span > HALF_TICK:  # the sum was rounded up
        most = math.nextafter(most, 0)
    while math.nextafter(most, math.inf) - limit.span <= HALF_TICK:  # a short span: the difference is rounded down
        most = math.nextafter(most, math.inf)
    return most


def take(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> float:
    """Return the bucket with *cost* tokens less. Whether they are there is :func:`wait_for`'s question."""
    behind = full_at - now if full_at > now else 0.0
    return now + (behind + cost * SECOND / limit.fill_rate)


def refund(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> float:
    """Return the bucket with *cost* tokens more, at most its capacity."""
    return max(float(now), full_at - cost * SECOND / limit.fill_rate)


def tokens_at(limit: Limit, full_at: float, now: int) -> float:
    """Return the tokens in the bucket: 0 to its capacity."""
    behind = full_at - now if full_at > now else 0.0
    return max(0.0, limit.capacity - behind * limit.fill_rate / SECOND)


def consume_path(
    path: Sequence[Limit], states: Sequence[float], now: int, cost: float = 1.0
) -> tuple[Decision, tuple[float, ...]]:
    """
    Take *cost* tokens from every level of *path*, or from none.

    Pure: a refusal returns *states* unchanged, and so does a look.

    Args:
        path: Limits, root first; length = depth >= 1.
        states: ``full_at`` of each level in µs; same length and order.
        now: µs, see :func:`wait_for`.
        cost: Tokens, >= 0; 0 only looks.

    Returns:
        The decision and the states to store; same length and order as *path*.

    Raises:
        CostExceedsCapacity: A level can never grant *cost*; its ``key`` is the level's index.
    """
    for level, limit in enumerate(path):
        if cost > limit.capacity:
            raise CostExceedsCapacity(f"level {level}", cost, limit.capacity)
    waits = [wait_for(limit, full_at, now, cost) for limit, full_at in zip(path, states, strict=True)]
    wait = max(waits)
    if wait == 0 and cost > 0:
        states = [take(limit, full_at, now, cost) for limit, full_at in zip(path, states, strict=True)]
    left = tuple(tokens_at(limit, full_at, now) for limit, full_at in zip(path, states, strict=True))
    return Decision(wait == 0, wait / SECOND, waits.index(wait) if wait else None, left), tuple(states)


def consume(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> tuple[Decision, float]:
    """Take *cost* tokens from one bucket: :func:`consume_path` of a path of one level."""
    decision, (full_at,) = consume_path((limit,), (full_at,), now, cost)
    return decision, full_at


def initial_state(limit: Limit, initial_tokens: float | None, now: int) -> float:
    """
    Return the ``full_at`` of a bucket that holds *initial_tokens* at *now*; ``None``: it is full.

    Raises:
        ConfigError: *initial_tokens* is no number from 0 to the capacity.
    """
    if initial_tokens is None:
        return FULL
    check_initial_tokens(initial_tokens, limit.capacity)
    return take(limit, FULL, now, limit.capacity - initial_tokens)
