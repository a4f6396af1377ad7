"""Validation of numbers, costs and timeouts that users pass."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from numbers import Real

from bucketflow.errors import ConfigError, CostExceedsCapacity

__all__ = ["check_cost", "check_count", "check_initial_tokens", "check_number", "check_timeout"]


def check_number(entry: str, value: object, expected: str, *, minimum: float = 0.0, above: bool = False) -> float:
    """
    Return *value* as a float if it is a finite number of at least *minimum*.

    A number is a real number, also of numpy, or a ``Decimal``. It may lose digits as a float, but not its sign.

    Args:
        entry: Name of the value in the error.
        value: The value to check.
        expected: Description of a valid value in the error.
        minimum: Smallest valid value.
        above: Whether *minimum* itself is invalid.

    Raises:
        ConfigError: *value* has another type (``bool`` and arrays included), which the error names. Or it is NaN or
            infinite, too small, or too large or too close to 0 for a float.
    """
    number = value if type(value) is int or type(value) is float else _as_float(entry, value, expected)
    if not abs(number) <= sys.float_info.max or number < minimum or (above and number == minimum):
        raise ConfigError(entry, value, expected)
    return float(number)


def _as_float(entry: str, value: object, expected: str) -> float:
    """Return *value* as a float, NaN if no float holds it. Raise ConfigError if it is no number."""
    if isinstance(value, (Real, Decimal)) and not isinstance(value, bool):
        try:
            number = float(value)
            is_kept = (number > 0.0) == (value > 0.0)  # type: ignore[operator] # unlike a Real, a number can be compared
        except (ArithmeticError, ValueError):
            return math.nan
        except TypeError:  # numpy registers its durations as integers, but they cannot be compared with numbers
            pass
        else:
            return number if is_kept else math.nan
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    raise ConfigError(entry, value, f"{expected}, not {name}")


def check_count(entry: str, value: object, expected: str) -> int:
    """
    Return *value* as an int if it is a whole number of at least 1.

    Raises:
        ConfigError: It is not. Arguments and error as in :func:`check_number`.
    """
    number = check_number(entry, value, expected, minimum=1)
    if not number.is_integer():
        raise ConfigError(entry, value, expected)
    return int(value)  # type: ignore[call-overload,no-any-return] # not of the float, which holds 53 bits


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


def check_timeout(timeout: object, *, block: bool) -> float:
    """
    Return the *timeout* of a ``consume`` as a float, by the rules of ``threading.Lock.acquire``.

    Raises:
        ConfigError: *timeout* is not a number of 0 or more, or the call does not *block*.
    """
    seconds = check_number("timeout", timeout, "seconds, 0 or more, or None")
    if not block:
        raise ConfigError("timeout", timeout, "None unless block=True")
    return seconds


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
