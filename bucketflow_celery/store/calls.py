"""Calls to a store: one on its way at a time, made at once or from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.scheduling.admit import Answer, Ask
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.interfaces import Call, Store

__all__ = ["Asker", "Book", "DirectAsker", "Flight", "Flights", "Outcome", "begin_now"]

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


#: One answer an ask, same order; ``None``: the limits have changed, resolve and ask again; or why there is no answer.
Outcome: TypeAlias = "Sequence[Answer] | StoreUnavailable | None"


class Asker(Protocol):
    """Puts questions, one call at a time."""

    def ask(self, asks: Sequence[Ask], done: Callable[[Outcome], None], *, urgent: bool) -> None:
        """
        Put *asks*, length >= 0, in one round trip; call *done* with the outcome, later or before this returns.

        It is *urgent* where more tasks wait than there are free slots: each moment of these slots is lost then.
        """

    def close(self) -> None:
        """Forget what is in flight."""


class Book(Protocol):
    """What knows which version of the limits is in force here."""

    version: str

    def renew(self) -> None:
        """Read the limits again. Raises ``StoreUnavailable``."""


class _Edition:
    """The limits that those who ask were resolved under. Others renew the book, too: the waiting room, or a user."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.version = book.version

    def is_old(self) -> bool:
        """Return whether the book was renewed; from here on what it says now counts."""
        was, self.version = self.version, self._book.version
        return was != self.version

    def check(self, version: str, answers: Sequence[Answer] | None) -> Sequence[Answer] | None:
        """Return *answers*; renew the book if there are none because *version* is in force. May raise."""
        if answers is None:
            if version != self._book.version:
                self._book.renew()
            self.version = self._book.version
        return answers


class DirectAsker:
    """
    Waits for the answer.

    Args:
        store: Where the levels live.
        book: Which limits are in force.
    """

    def __init__(self, store: Store, book: Book) -> None:
        self._store = store
        self._edition = _Edition(book)

    def ask(self, asks: Sequence[Ask], done: Callable[[Outcome], None], *, urgent: bool) -> None:
        """See :class:`Asker`."""
        del urgent  # it waits in any case
        outcome: Outcome = None
        try:
            if not self._edition.is_old():
                outcome = self._edition.check(*self._store.admit(asks, self._edition.version))
        except StoreUnavailable as error:
            outcome = error
        done(outcome)

    def close(self) -> None:
        """See :class:`Asker`."""


def begin_now(call: Call[Any], done: Callable[[Any], None]) -> None:
    """Make *call* and wait for its reply; tell it, or ``StoreUnavailable``, to *done*."""
    try:
        reply = call.run()
    except StoreUnavailable as error:
        reply = error
    done(reply)
