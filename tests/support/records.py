"""Records that the workers of a test write, and how well they keep a limit."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import redis
from processes import wait_until

from bucketflow.limit import Limit
from bucketflow.testing import worst_excess

__all__ = ["JITTER", "MAX_SHARED_RATE", "Records", "excess", "utilisation"]

#: Tolerated excess in tasks: the delay between the admission and the start of a task varies.
JITTER = 1.0
#: Most tokens per second of a limit that is judged while other tests run: then JITTER is at least 0.1 s.
MAX_SHARED_RATE = 10


@dataclass(frozen=True)
class Records:
    """The lists and counters that ``workloads.py`` writes."""

    client: redis.Redis

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Return the records of *kind*, oldest first."""
        return [json.loads(line) for line in self.client.lrange(kind, 0, -1)]

    def count(self, kind: str) -> int:
        return self.client.llen(kind)

    def wait(self, kind: str, least: int, timeout: float = 20.0) -> list[dict[str, Any]]:
        """Return the records of *kind* once there are at least *least*, or fail after *timeout* seconds."""
        try:
            wait_until(lambda: self.count(kind) >= least, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{self.count(kind)} of {least} {kind} within {timeout:g} s") from None
        return self.of(kind)

    def starts(self, least: int, timeout: float = 20.0, **facts: object) -> list[dict[str, Any]]:
        """Return the starts that match *facts* once there are at least *least* of them."""

        def matching() -> list[dict[str, Any]]:
            return [start for start in self.of("starts") if all(start[name] == value for name, value in facts.items())]

        try:
            wait_until(lambda: len(matching()) >= least, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{len(matching())} of {least} starts of {facts} within {timeout:g} s") from None
        return matching()

    def deliveries(self) -> Counter[str]:
        """Return the number of deliveries of each task, by task id."""
        return Counter({key.decode(): int(value) for key, value in self.client.hgetall("deliveries").items()})


def times(starts: Iterable[dict[str, Any]]) -> list[float]:
    return sorted(start["at"] for start in starts)


def excess(starts: Iterable[dict[str, Any]], capacity: float, rate: float, cost: float = 1.0) -> float:
    """Return the tokens by which the worst window between any two starts exceeds ``capacity + rate * window``."""
    assert rate <= MAX_SHARED_RATE or "PYTEST_XDIST_WORKER" not in os.environ, (
        f"while other tests run, at most {MAX_SHARED_RATE} per second can be judged, not {rate}: mark the test timing"
    )
    return max(0.0, worst_excess([(at, cost) for at in times(starts)], Limit(capacity, rate)))


def utilisation(starts: Iterable[dict[str, Any]], capacity: float, rate: float, cost: float = 1.0) -> float:
    """Return the fraction used of the tokens that were refilled between the first and the last start."""
    at = times(starts)
    return (len(at) * cost - capacity) / rate / (at[-1] - at[0])
