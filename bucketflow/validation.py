"""Validation of numbers, costs and timeouts that users pass."""

from __future__ import annotations

import sys

from bucketflow.errors import ConfigError, CostExceedsCapacity

__all__ = ["check_cost", "check_initial_tokens", "check_number", "check_timeout"]


def check_number(entry: str, value: object, expected: str, *, minimum: float = 0.0, above: bool = False) -> float:
    """
    Return *value* as a float if it is a finite number of at least *minimum*.

    Args:
        entry: Name of the value in the error.
        value: The value to check.
        expected: Description of a valid value in the error.
        minimum: Smallest valid value.
        above: Whether *minimum* itself is invalid.

    Raises:
        ConfigError: *value* has another type (``bool`` included), is NaN or infinite, or is too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise ConfigError(entry, value, expected)
    if value < minimum or (above and value == minimum):
        raise ConfigError(entry, value, expected)
    return float(value)


def check_cost(tokens: object, capacity: float, key: str) -> float:
    """
    Return *tokens* as a cost that a bucket of *capacity* can grant.

    Raises:
        ConfigError: *tokens* is not a number of 0 or more.
        CostExceedsCapacity: *tokens* is above *capacity*. The error names *key*.
    """
    if (type(tokens) is int or type(tokens) is float) and 0 <= tokens <= capacity:
        return float(tokens)  # nearly every call; the rest finds the error
    cost = check_number("tokens", tokens, "a number of tokens, 0 or more")
    if cost > capacity:
        raise CostExceedsCapacity(key, cost, capacity)
    return cost


def check_timeout(timeout: object, *, block: bool) -> None:
    """
    Check the *timeout* of a ``consume``, by the rules of ``threading.Lock.acquire``.

    Raises:
        ConfigError: *timeout* is not a number of 0 or more, or the call does not *block*.
    """
    check_number("timeout", timeout, "seconds, 0 or more, or None")
    if not block:
        raise ConfigError("timeout", timeout, "None unless block=True")


def check_initial_tokens(initial_tokens: object, capacity: float) -> float | None:
    """
    Return *initial_tokens* of a bucket of *capacity* as a float; ``None``, which means full, stays ``None``.

    Raises:
        ConfigError: *initial_tokens* is not a number from 0 to *capacity*.
    """
    if initial_tokens is None:
        return None
    expected = f"a number of tokens from 0 to the capacity, {capacity:g}"
    tokens = check_number("initial_tokens", initial_tokens, expected)
    if tokens > capacity:
        raise ConfigError("initial_tokens", initial_tokens, expected)
    return tokens
