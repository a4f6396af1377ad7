"""Questions on their way to the store: one at a time, for many tasks, while the worker goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bucketflow_celery.admission import Ask
from bucketflow_celery.asking import Asker, Outcome
from bucketflow_celery.lines import Entry, Line
from bucketflow_celery.stats import Stats

__all__ = ["Batch", "Flight", "Flights"]

#: Tasks to ask for, each with the line that it stood in, if it stood in any.
Batch: TypeAlias = "list[tuple[Entry, Line | None]]"


@dataclass(slots=True)
class Flight:
    """
    A question, and what came of it.

    Attributes:
        batch: Of whom.
        asks: One a task, same order.
        outcome: Once it is answered.
        landed: Whether it is answered.
    """

    batch: Batch
    asks: Sequence[Ask]
    outcome: Outcome = None
    landed: bool = False


class Flights:
    """
    Puts one question after another.

    Args:
        asker: Reaches the store.
        stats: Where to count.
        monotonic: Returns the worker's time, in seconds.
        on_answer: Called when there is something to :meth:`take`.

    Attributes:
        asked_at: When the last question was put; minus infinity before the first.
    """

    def __init__(
        self, asker: Asker, stats: Stats, monotonic: Callable[[], float], on_answer: Callable[[], None]
    ) -> None:
        self._asker = asker
        self._stats = stats
        self._monotonic = monotonic
        self._on_answer = on_answer
        self._flight: Flight | None = None
        self.asked_at = float("-inf")

    @property
    def is_out(self) -> bool:
        """Whether a question is on its way, or was not taken yet."""
        return self._flight is not None

    @property
    def size(self) -> int:
        """For how many tasks it is."""
        return 0 if self._flight is None else len(self._flight.batch)

    def put(self, batch: Batch, asks: Sequence[Ask], *, urgent: bool) -> None:
        """Ask for *batch*; see :meth:`bucketflow_celery.asking.Asker.ask`. None may be on its way."""
        self.asked_at = self._monotonic()
        self._stats.round_trips += 1
        flight = self._flight = Flight(batch, asks)

        def on_outcome(outcome: Outcome) -> None:
            flight.outcome, flight.landed = outcome, True
            self._on_answer()

        self._asker.ask(asks, on_outcome, urgent=urgent)

    def take(self) -> Flight | None:
        """Return the question that is answered, if one is; then the next can be put."""
        if self._flight is None or not self._flight.landed:
            return None
        return self.drop()

    def drop(self) -> Flight | None:
        """Return the question, answered or not; its outcome will be nobody's."""
        flight, self._flight = self._flight, None
        return flight
