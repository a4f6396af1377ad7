"""What the workers of a test have recorded, and what it says about limits."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from processes import wait_until

from bucketflow.limit import Limit
from bucketflow.testing import worst_excess

__all__ = ["JITTER", "Records", "excess", "utilisation"]

#: Tasks by which a window may seem too full: a task starts a little after it was admitted, not always equally late.
JITTER = 1.0


@dataclass(frozen=True)
class Records:
    """The lists that ``workloads.py`` writes."""

    client: redis.Redis

    def of(self, what: str) -> list[dict[str, Any]]:
        """Return the records under *what*, oldest first."""
        return [json.loads(line) for line in self.client.lrange(what, 0, -1)]

    def count(self, what: str) -> int:
        return self.client.llen(what)

    def wait(self, what: str, least: int, timeout: float = 20.0) -> list[dict[str, Any]]:
        """Return the records under *what* once there are *least*, or fail after *timeout* seconds."""
        try:
            wait_until(lambda: self.count(what) >= least, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{self.count(what)} of {least} {what} within {timeout:g} s") from None
        return self.of(what)

    def starts(self, least: int, timeout: float = 20.0, **facts: object) -> list[dict[str, Any]]:
        """Return the starts that match *facts* once there are *least* of them."""

        def matching() -> list[dict[str, Any]]:
            return [start for start in self.of("starts") if all(start[name] == value for name, value in facts.items())]

        try:
            wait_until(lambda: len(matching()) >= least, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{len(matching())} of {least} starts of {facts} within {timeout:g} s") from None
        return matching()

    def deliveries(self) -> Counter[str]:
        """Return how often each task was delivered, by its id."""
        return Counter({key.decode(): int(value) for key, value in self.client.hgetall("deliveries").items()})


def times(starts: Iterable[dict[str, Any]]) -> list[float]:
    return sorted(start["at"] for start in starts)


def excess(starts: Iterable[dict[str, Any]], capacity: float, rate: float, cost: float = 1.0) -> float:
    """Return by how many tokens the worst window between any two starts goes over ``capacity + rate * window``."""
    return max(0.0, worst_excess([(at, cost) for at in times(starts)], Limit(capacity, rate)))


def utilisation(starts: Iterable[dict[str, Any]], capacity: float, rate: float, cost: float = 1.0) -> float:
    """Return what share of the tokens that came between the first and the last start was used."""
    at = times(starts)
    return (len(at) * cost - capacity) / rate / (at[-1] - at[0])
