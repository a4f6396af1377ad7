"""
Token bucket by the generic cell rate algorithm (GCRA). All bucket classes delegate to this module.

The state of a bucket is one number, ``full_at``: the instant, in µs, at which the bucket is full again. At ``now`` it
lacks ``(full_at - now) × fill_rate`` tokens. An instant in the past means a full bucket, and so does a missing state.
Taking tokens moves ``full_at`` later, a refund moves it earlier, and the passing of time changes nothing.

``lua/gcra.lua`` mirrors this file line by line. A property test compares the results of both bit for bit.

Source: ITU-T I.371. Its theoretical arrival time is ``full_at`` less one emission interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bucketflow.errors import CostExceedsCapacity
from bucketflow.limit import SECOND, Limit
from bucketflow.validation import check_initial_tokens

__all__ = [
    "FULL",
    "Decision",
    "at_larger_rate",
    "burst_tolerance",
    "consume",
    "consume_path",
    "refund",
    "take",
    "tokens_at",
    "wait_for",
]

#: The state of an unused bucket.
FULL = 0.0

#: Half the resolution of the clock, in µs. A rounding error in the last bit of a double must not add a whole µs.
HALF_TICK = 0.5


@dataclass(frozen=True, slots=True)
class Decision:
    """
    The result of one request.

    Attributes:
        allowed: Whether the tokens were taken, at every level.
        retry_after: Seconds until the same request is granted, absent other callers; 0 if allowed. A retry 1 µs
            earlier is refused.
        binding: Index of the level with the longest wait, root first; ``None`` if allowed.
        tokens: Tokens left at each level, root first; length = depth of the path >= 1.
    """

    allowed: bool
    retry_after: float
    binding: int | None
    tokens: tuple[float, ...]


def wait_for(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> int:
    """
    Return the µs, rounded up, until the bucket holds *cost* tokens; 0 if it does.

    Args:
        limit: Capacity in tokens; fill rate in tokens per second.
        full_at: State of the bucket, in µs.
        now: µs on the clock that stamped *full_at*. May decrease between calls: a clock that steps back earns nothing.
        cost: Tokens, >= 0 and at most the capacity.
    """
    deficit = full_at - now if full_at > now else 0.0
    return max(0, math.ceil(deficit + cost * SECOND / limit.fill_rate - limit.span - HALF_TICK))


def burst_tolerance(limit: Limit) -> float:
    """Return the most µs that a bucket may be from full after a grant. Above it, :func:`wait_for` is not 0."""
    tolerance = limit.span + HALF_TICK
    while tolerance - limit.span > HALF_TICK:  # the sum was rounded up
        tolerance = math.nextafter(tolerance, 0)
    while math.nextafter(tolerance, math.inf) - limit.span <= HALF_TICK:  # short span: the difference is rounded down
        tolerance = math.nextafter(tolerance, math.inf)
    return tolerance


def take(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> float:
    """Return the state with *cost* tokens less. Does not check that they are there, see :func:`wait_for`."""
    deficit = full_at - now if full_at > now else 0.0
    return now + (deficit + cost * SECOND / limit.fill_rate)


def refund(limit: Limit, full_at: float, now: int, cost: float = 1.0) -> float:
    """Return the state with *cost* tokens more, at most up to the capacity."""
    return max(float(now), full_at - cost * SECOND / limit.fill_rate)


def tokens_at(limit: Limit, full_at: float, now: int) -> float:
    """Return the tokens in the bucket, from 0 to its capacity."""
    deficit = full_at - now if full_at > now else 0.0
    return max(0.0, limit.capacity - deficit * limit.fill_rate / SECOND)


def at_larger_rate(full_at: float, stored_rate: float, fill_rate: float, now: int) -> tuple[float, float]:
    """
    Return the state of a bucket that callers with different limits share, and the fill rate that it is for.

    Until it is full, the bucket gains the largest of their rates, and each of them takes tokens up to its own capacity.
    So all of them together take no more than the largest capacity and the largest fill rate allow.

    Args:
        full_at: State of the bucket in µs, at *stored_rate*.
        stored_rate: Tokens per second. Above 0.
        fill_rate: Likewise, of the caller's limit.
        now: µs, see :func:`wait_for`.
    """
    if full_at <= now or stored_rate == fill_rate:
        return full_at, fill_rate
    if stored_rate > fill_rate:
        return full_at, stored_rate
    return now + (full_at - now) * stored_rate / fill_rate, fill_rate


def consume_path(
    path: Sequence[Limit], states: Sequence[float], now: int, cost: float = 1.0
) -> tuple[Decision, tuple[float, ...]]:
    """
    Take *cost* tokens from every level of *path*, or from none.

    A refusal returns *states* unchanged, and so does a cost of 0.

    Args:
        path: Limits, root first; length = depth >= 1.
        states: ``full_at`` of each level in µs; same length and order.
        now: µs, see :func:`wait_for`.
        cost: Tokens, >= 0; 0 takes none and reports the state.

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
    """Take *cost* tokens from one bucket, as :func:`consume_path` does for a path of one level."""
    decision, (full_at,) = consume_path((limit,), (full_at,), now, cost)
    return decision, full_at


def initial_state(limit: Limit, initial_tokens: float | None, now: int) -> float:
    """
    Return the state of a bucket that holds *initial_tokens* at *now*; ``None``: it is full.

    Raises:
        ConfigError: *initial_tokens* is not a number from 0 to the capacity.
    """
    tokens = check_initial_tokens(initial_tokens, limit.capacity)
    return FULL if tokens is None else take(limit, FULL, now, limit.capacity - tokens)
