"""How the gate's questions reach the store: at once, or from the event loop without waiting for the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.admission import Answer, Ask
from bucketflow_celery.backlogs import Call
from bucketflow_celery.hub_runner import HubRunner
from bucketflow_celery.store import RedisStore, Store

__all__ = ["Asker", "Book", "DirectAsker", "HubAsker", "Outcome", "asker_for", "begin_from", "begin_now"]

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


class HubAsker:
    """
    Lets the event loop go on, and is told of the answer.

    Args:
        store: Where the levels live.
        book: Which limits are in force.
        runner: Runs its scripts from the loop.
    """

    def __init__(self, store: RedisStore, book: Book, runner: HubRunner) -> None:
        self._store = store
        self._edition = _Edition(book)
        self._runner = runner

    def ask(self, asks: Sequence[Ask], done: Callable[[Outcome], None], *, urgent: bool) -> None:
        """See :class:`Asker`."""
        if self._edition.is_old():
            done(None)
            return

        def on_reply(reply: Any) -> None:
            outcome: Outcome
            try:
                outcome = reply if isinstance(reply, StoreUnavailable) else self._read(asks, reply)
            except StoreUnavailable as error:
                outcome = error
            done(outcome)

        self._runner.run(*self._store.question(asks, self._edition.version), on_reply, urgent=urgent)

    def close(self) -> None:
        """See :class:`Asker`."""
        self._runner.close()

    def _read(self, asks: Sequence[Ask], reply: Any) -> Outcome:
        return self._edition.check(*self._store.read(asks, self._edition.version, reply))


def begin_now(call: Call[Any], done: Callable[[Any], None]) -> None:
    """Make *call* and wait for its reply; tell it, or ``StoreUnavailable``, to *done*."""
    try:
        reply = call.run()
    except StoreUnavailable as error:
        reply = error
    done(reply)


def begin_from(runner: HubRunner) -> Callable[[Call[Any], Callable[[Any], None]], None]:
    """Return what makes calls of a :class:`RedisStore` from an event loop, one at a time; see :func:`begin_now`."""

    def begin(call: Any, done: Callable[[Any], None]) -> None:
        def on_reply(reply: Any) -> None:
            done(reply if isinstance(reply, StoreUnavailable) else call.read(reply))

        runner.run(call.script, call.keys, call.args, on_reply)

    return begin


def asker_for(store: Store, book: Book, hub: Any, timeout: float) -> Asker:
    """Return what suits a worker: *hub* is its event loop, ``None`` if it has none; *timeout* is in seconds."""
    if hub is not None and isinstance(store, RedisStore):
        return HubAsker(store, book, HubRunner(store.runner, hub, timeout))
    return DirectAsker(store, book)
