"""A limit: how many tokens a bucket holds, and how fast they come."""

from __future__ import annotations

import re
from dataclasses import dataclass

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number

__all__ = ["SECOND", "Limit"]

#: µs in a second: the public API speaks seconds, everything inside whole µs.
SECOND = 1_000_000

#: Past this many seconds to fill, a double no longer resolves the µs that ``retry_after`` promises.
LONGEST_FILL = 1e9

_PERIODS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*/\s*([smhd])\s*")


@dataclass(frozen=True, slots=True)
class Limit:
    """
    The frozen pair that defines a bucket.

    In every window of ``w`` seconds a bucket grants at most ``capacity + fill_rate × w`` tokens.

    Args:
        capacity: Most tokens the bucket holds: the burst. Above 0.
        fill_rate: Tokens per second. Above 0.

    Raises:
        ConfigError: Either is not a finite number above 0, or the bucket would need over 31 years to fill.
    """

    capacity: float
    fill_rate: float

    def __post_init__(self) -> None:
        check_number("capacity", self.capacity, "a number of tokens above 0", above=True)
        check_number("fill_rate", self.fill_rate, "a number of tokens per second above 0", above=True)
        if self.capacity / self.fill_rate > LONGEST_FILL:
            raise ConfigError("fill_rate", self.fill_rate, f"enough to fill {self.capacity:g} tokens within 31 years")

    @property
    def span(self) -> float:
        """µs an empty bucket needs to fill."""
        return self.capacity * SECOND / self.fill_rate

    @classmethod
    def parse(cls, text: str, capacity: float | None = None) -> Limit:
        """
        Read ``"100/s"``, ``"30/m"``, ``"1000/h"`` or ``"5000/d"``.

        Args:
            text: Tokens per second, minute, hour or day.
            capacity: Tokens; by default one second's worth, at least 1.

        Raises:
            ConfigError: *text* is of another form, its rate is 0, or *capacity* is no number above 0.
        """
        match = _RATE.fullmatch(text) if isinstance(text, str) else None
        if match is None or float(match[1]) == 0:
            raise ConfigError("rate", text, 'a rate above 0 such as "100/s", "30/m", "1000/h" or "5000/d"')
        fill_rate = float(match[1]) / _PERIODS[match[2]]
        return cls(max(1.0, fill_rate) if capacity is None else capacity, fill_rate)
