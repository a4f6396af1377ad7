"""Calls to a store: one on its way at a time, made at once or from the event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from bucketflow.errors import StoreUnavailable
from bucketflow_celery.scheduling.admit import AdmissionDecision, AdmissionRequest
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.interfaces import Call, Store

__all__ = ["ActiveLimits", "Asker", "DirectAsker", "InFlightCall", "Outcome", "_Call", "begin_now"]

T = TypeVar("T")


@dataclass(slots=True)
class _Call(Generic[T]):
    """
    A call.

    Attributes:
        context: What it was made for.
        outcome: Its reply, or ``StoreUnavailable``, once it has done.
        done: Whether it has.
    """

    context: T
    outcome: Any = None
    done: bool = False


class InFlightCall(Generic[T]):
    """
    Makes one call after another.

    Args:
        stats: Where to count.
        on_done: Called when there is something to :meth:`take`.
    """

    def __init__(self, stats: Stats, on_done: Callable[[], None]) -> None:
        self._stats = stats
        self._on_done = on_done
        self._flight: _Call[T] | None = None

    @property
    def context(self) -> T | None:
        """What the call was made for that is on its way, or was not taken yet; ``None`` if there is none."""
        return None if self._flight is None else self._flight.context

    def put(self, context: T, send: Callable[[Callable[[Any], None]], None]) -> None:
        """Make a call: *send* tells its outcome to its argument, later or before it returns. None may be on its way."""
        self._stats.round_trips += 1
        flight = self._flight = _Call(context)

        def on_outcome(outcome: Any) -> None:
            flight.outcome, flight.done = outcome, True
            self._on_done()

        send(on_outcome)

    def take(self) -> _Call[T] | None:
        """Return the call that has done, if it has; then the next can be made."""
        if self._flight is None or not self._flight.done:
            return None
        return self.drop()

    def drop(self) -> _Call[T] | None:
        """Return the call, done or not; its outcome will be nobody's."""
        flight, self._flight = self._flight, None
        return flight


#: One answer an ask, same order; ``None``: the limits have changed, resolve and ask again; or why there is no answer.
Outcome: TypeAlias = "Sequence[AdmissionDecision] | StoreUnavailable | None"


class Asker(Protocol):
    """Puts questions, one call at a time."""

    def ask(self, requests: Sequence[AdmissionRequest], done: Callable[[Outcome], None], *, inline: bool) -> None:
        """
        Put *requests*, length >= 0, in one round trip; call *done* with the outcome, later or before this returns.

        It is *inline* where more tasks wait than there are free slots: each moment of these slots is lost then.
        """

    def close(self) -> None:
        """Forget what is in flight."""


class ActiveLimits(Protocol):
    """What knows which version of the limits is in force here."""

    version: str

    def refresh(self) -> None:
        """Read the limits again. Raises ``StoreUnavailable``."""


class _Edition:
    """The version of the limits that the requests were resolved under. Other components refresh the limits, too."""

    def __init__(self, active_limits: ActiveLimits) -> None:
        self._active_limits = active_limits
        self.version = active_limits.version

    def is_old(self) -> bool:
        """Return whether the active_limits was renewed; from here on what it says now counts."""
        was, self.version = self.version, self._active_limits.version
        return was != self.version

    def check(self, version: str, answers: Sequence[AdmissionDecision] | None) -> Sequence[AdmissionDecision] | None:
        """Return *answers*; renew the active_limits if there are none because *version* is in force. May raise."""
        if answers is None:
            if version != self._active_limits.version:
                self._active_limits.refresh()
            self.version = self._active_limits.version
        return answers


class DirectAsker:
    """
    Waits for the answer.

    Args:
        store: Where the levels live.
        active_limits: Which limits are in force.
    """

    def __init__(self, store: Store, active_limits: ActiveLimits) -> None:
        self._store = store
        self._edition = _Edition(active_limits)

    def ask(self, requests: Sequence[AdmissionRequest], done: Callable[[Outcome], None], *, inline: bool) -> None:
        """See :class:`Asker`."""
        del inline  # it waits in any case
        outcome: Outcome = None
        try:
            if not self._edition.is_old():
                outcome = self._edition.check(*self._store.admit(requests, self._edition.version))
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
