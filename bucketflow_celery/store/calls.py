"""Calls to the store: one in flight at a time, behind a circuit breaker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from bucketflow.errors import StoreFull, StoreUnavailable
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.stats import Stats
from bucketflow_celery.store.active_limits import ActiveLimits
from bucketflow_celery.store.circuit_breaker import CircuitBreaker
from bucketflow_celery.store.interfaces import StaleLimits, Store, StoreCall

__all__ = ["BlockingRunner", "CallRunner", "StoreClient", "WorkerContext"]

T = TypeVar("T")


class WorkerContext(NamedTuple):
    """
    What all components of one worker share.

    Attributes:
        settings: The options in force.
        store: Where levels and backlogs live.
        limits: The limits in force.
        stats: The worker's counters.
    """

    settings: Settings
    store: Store
    limits: ActiveLimits
    stats: Stats


class CallRunner(Protocol):
    """Runs calls to the store, one at a time."""

    def run(self, call: StoreCall[Any], on_reply: Callable[[Any], None], *, inline: bool = False) -> None:
        """
        Run *call* and pass its reply, or ``StoreUnavailable``, to *on_reply*: later, or before this returns.

        Args:
            call: The call; the one before it has been answered.
            on_reply: Called once.
            inline: Whether a short wait for the reply is worth it: more tasks wait than there are free slots.
        """

    def close(self) -> None:
        """Drop the call in flight."""


class BlockingRunner:
    """Implements :class:`CallRunner`: waits for each reply."""

    def run(self, call: StoreCall[Any], on_reply: Callable[[Any], None], *, inline: bool = False) -> None:
        """See :class:`CallRunner`."""
        del inline  # it waits in any case
        try:
            reply = call.run()
        except StoreUnavailable as error:
            reply = error
        on_reply(reply)

    def close(self) -> None:
        """See :class:`CallRunner`."""


class StoreClient(Generic[T]):
    """
    Runs the calls of one component, one at a time, and keeps the state of its connection to the store.

    Args:
        logger: Of the component.
        runner: Runs the calls.
        context: The worker's.
        on_reply: Called when there is a reply to :meth:`take`.
        monotonic: Returns seconds of a clock that never steps.

    Attributes:
        context: What the call in flight was made for; ``None`` if there is none. Set until its reply is taken.
        breaker: Open while the store does not answer.
    """

    def __init__(
        self,
        logger: logging.Logger,
        runner: CallRunner,
        context: WorkerContext,
        on_reply: Callable[[], None],
        monotonic: Callable[[], float],
    ) -> None:
        self._logger = logger
        self._runner = runner
        self._limits = context.limits
        self._stats = context.stats
        self._on_reply = on_reply
        self._monotonic = monotonic
        self._replies: list[Any] = []
        self.context: T | None = None
        self.breaker = CircuitBreaker()

    def send(self, call: StoreCall[Any], context: T, *, inline: bool = False) -> None:
        """Run *call* for *context*; no other call may be in flight. See :meth:`CallRunner.run`."""
        self._stats.round_trips += 1
        replies: list[Any] = []
        self.context, self._replies = context, replies

        def on_reply(reply: Any) -> None:
            replies.append(reply)
            self._on_reply()

        self._runner.run(call, on_reply, inline=inline)

    def take(self, effect: str, *, tolerates_full: bool = False) -> tuple[T, Any] | None:
        """
        Return the context and the reply of the call in flight, if there is a reply; another call may be sent then.

        A reply that says that the limits are stale refreshes them. Failures open the circuit breaker and are logged
        once an outage.

        Args:
            effect: What an outage means, for the log.
            tolerates_full: Whether a store without memory is no outage, because the caller's other calls need none.

        Returns:
            The reply is ``StoreUnavailable`` if the call, or the refresh, failed.
        """
        if self.context is None or not self._replies:
            return None
        context, reply = self.context, self._refreshed(self._replies[0])
        self.drop()
        if isinstance(reply, StoreFull) and tolerates_full:
            self._stats.store_errors += 1
        elif isinstance(reply, StoreUnavailable):
            self._stats.store_errors += 1
            if self.breaker.record_failure(self._monotonic()):
                self._logger.error("store unavailable, %s until it answers: %s", effect, reply)
        elif self.breaker.record_success():
            self._logger.warning("store answers again")
        return context, reply

    def drop(self) -> T | None:
        """Forget the call in flight and return its context; a reply that comes later is ignored."""
        context, self.context, self._replies = self.context, None, []
        return context

    def close(self) -> None:
        """Drop the call in flight and close the connection."""
        self.drop()
        self._runner.close()

    def _refreshed(self, reply: Any) -> Any:
        if isinstance(reply, StaleLimits) and reply.version != self._limits.version:
            try:
                self._limits.refresh()
            except StoreUnavailable as error:
                return error
        return reply
