"""Limits: the capacity and fill rate of a bucket."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number

__all__ = ["SECOND", "Limit"]

#: µs in a second. The public API takes and returns seconds; all internal times are whole µs.
SECOND = 1_000_000

#: Most seconds that a bucket may need to fill. Beyond that, a double does not resolve the µs of ``retry_after``.
MAX_FILL_TIME = 1e9

_TOKENS_PER_SECOND = "a number of tokens per second above 0"
_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smhd])\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """
    Capacity and fill rate of a bucket; immutable.

    In every window of ``w`` seconds a bucket grants at most ``capacity + fill_rate × w`` tokens.

    Args:
        capacity: Most tokens the bucket holds: the burst. Above 0.
        fill_rate: Tokens per second. Above 0.

    Raises:
        ConfigError: A value is not a finite number above 0, or the bucket would need over 31 years to fill.
    """

    capacity: float
    fill_rate: float

    def __post_init__(self) -> None:
        for name, expected in (("capacity", "a number of tokens above 0"), ("fill_rate", _TOKENS_PER_SECOND)):
            value = getattr(self, name)
            number = check_number(name, value, expected, above=True)
            if type(value) is not int and type(value) is not float:
                object.__setattr__(self, name, number)
        if self.capacity / self.fill_rate > MAX_FILL_TIME:
            raise ConfigError("fill_rate", self.fill_rate, f"enough to fill {self.capacity:g} tokens within 31 years")

    @property
    def span(self) -> float:
        """µs that an empty bucket needs to fill."""
        return self.capacity * SECOND / self.fill_rate

    @classmethod
    def parse(cls, text: str, capacity: float | None = None) -> Limit:
        """
        Parse a rate such as ``"100/s"``, ``"30/m"``, ``"1000/h"`` or ``"5000/d"``.

        Args:
            text: Tokens per second, minute, hour or day.
            capacity: Tokens; by default the tokens of one second, at least 1.

        Returns:
            The limit.

        Raises:
            ConfigError: *text* has another form, its rate is 0, or *capacity* is not a number above 0.
        """
        match = _RATE.fullmatch(text) if isinstance(text, str) else None
        if match is None or float(match[1]) == 0:
            raise ConfigError("rate", text, 'a rate above 0 such as "100/s", "30/m", "1000/h" or "5000/d"')
        fill_rate = float(match[1]) / _PERIODS[match[2]]
        return cls(max(1.0, fill_rate) if capacity is None else capacity, fill_rate)
