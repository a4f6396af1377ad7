"""What is on its way to a store: one call at a time, while the worker goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bucketflow_celery.stats import Stats

__all__ = ["Flight", "Flights"]

T = TypeVar("T")


@dataclass(slots=True)
class Flight(Generic[T]):
    """
    A call.

    Attributes:
        load: What it was made for.
        outcome: Its reply, or ``StoreUnavailable``, once it has landed.
        landed: Whether it has.
    """

    load: T
    outcome: Any = None
    landed: bool = False


class Flights(Generic[T]):
    """
    Makes one call after another.

    Args:
        stats: Where to count.
        on_landing: Called when there is something to :meth:`take`.
    """

    def __init__(self, stats: Stats, on_landing: Callable[[], None]) -> None:
        self._stats = stats
        self._on_landing = on_landing
        self._flight: Flight[T] | None = None

    @property
    def load(self) -> T | None:
        """What the call was made for that is on its way, or was not taken yet; ``None`` if there is none."""
        return None if self._flight is None else self._flight.load

    def put(self, load: T, send: Callable[[Callable[[Any], None]], None]) -> None:
        """Make a call: *send* tells its outcome to its argument, later or before it returns. None may be on its way."""
        self._stats.round_trips += 1
        flight = self._flight = Flight(load)

        def on_outcome(outcome: Any) -> None:
            flight.outcome, flight.landed = outcome, True
            self._on_landing()

        send(on_outcome)

    def take(self) -> Flight[T] | None:
        """Return the call that has landed, if it has; then the next can be made."""
        if self._flight is None or not self._flight.landed:
            return None
        return self.drop()

    def drop(self) -> Flight[T] | None:
        """Return the call, landed or not; its outcome will be nobody's."""
        flight, self._flight = self._flight, None
        return flight
