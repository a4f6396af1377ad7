"""Run scripts from a worker's event loop without waiting for the answer: the loop goes on, and is told."""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script
from bucketflow.redis_client.spin_wait import SpinWait
from bucketflow.redis_client.topology import FAILURES, CallPlan, Exchange, advance
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.store.calls import ActiveLimits, Asker, DirectAsker, Outcome, _Edition
from bucketflow_celery.store.interfaces import Call, Store
from bucketflow_celery.store.redis_store import RedisStore

__all__ = ["EventLoopRunner", "HubAsker", "asker_for", "begin_from"]

#: Milliseconds for which an inline exchange waits, and how many do not wait after one that did so in vain.
INLINE_WAIT_MS, INLINE_BACKOFF = 1, 100


class EventLoopRunner:
    """
    One call at a time, over one connection that the event loop watches.

    What a synchronous call costs a busy worker is not its own time but the wait: on a machine without a free core the
    server, and then the worker, must get their turn first. Meanwhile this worker receives, starts and acknowledges.
    Where tasks wait for the slots in exchange, a moment's wait is shorter than the way through the loop.

    Args:
        runner: Knows the servers.
        hub: Kombu's event loop.
        timeout: Seconds a server may take to answer.
    """

    def __init__(self, runner: ScriptRunner, hub: Any, timeout: float) -> None:
        self._runner = runner
        self._hub = hub
        self._timeout = timeout
        self._node: Node | None = None
        self._connection: Any = None
        self._plan: CallPlan | None = None
        self._exchange: Exchange | None = None
        self._done: Callable[[Any], None] | None = None
        self._deadline = 0.0
        self._timer: Any = None
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._spin_wait = SpinWait()
        self._in_vain = 0

    def run(
        self,
        script: Script,
        keys: Sequence[bytes],
        args: Sequence[str | bytes],
        done: Callable[[Any], None],
        *,
        inline: bool = False,
    ) -> None:
        """
        Run *script* once, and call *done* with its reply or with ``StoreUnavailable``: later, or before this returns.

        The call before it must be done. If it is *inline* it is worth a moment's wait.
        """
        self._plan, self._done = self._runner.plan(script, keys, args), done
        self._put(next(self._plan))
        if inline and self._plan is not None and self._answers_at_once():
            self._on_readable()

    def close(self) -> None:
        """Forget the call in flight and close the connection; the next call opens another."""
        self._plan = self._done = None
        self._drop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _put(self, exchange: Exchange) -> None:
        self._exchange = exchange
        try:
            self._connect(exchange.node)
            # Not send_packed_command: after an error it closes the socket itself, see _on_readable.
            _socket_of(self._connection).sendall(b"".join(exchange.commands))
        except FAILURES as error:
            self._drop()
            self._proceed(error)
            return
        self._deadline = monotonic() + self._timeout
        if self._timer is None:
            self._timer = self._hub.call_later(self._timeout, self._on_timer)

    def _proceed(self, outcome: Any) -> None:
        if self._plan is None or self._exchange is None or self._done is None:
            return
        result: Any
        try:
            exchange = advance(self._plan, self._exchange, outcome)
        except StopIteration as finished:
            (result,) = finished.value
        except StoreUnavailable as error:
            result = error
        else:
            self._put(exchange)
            return
        done, self._plan, self._done = self._done, None, None
        done(result)

    def _answers_at_once(self) -> bool:
        # By way of the loop an answer comes a turn later, and a turn takes longer than a server nearby. One that
        # does not answer within the moment is far away or busy: the next questions leave it to the loop. The first part
        # of the moment may be spent awake.
        if self._in_vain > 0:
            self._in_vain -= 1
            return False
        poll = self._poll
        if poll is None:
            return False
        self._spin_wait.wait(lambda: poll(0))
        answers = bool(poll(INLINE_WAIT_MS))
        if not answers:
            self._in_vain = INLINE_BACKOFF
        return answers

    def _on_readable(self) -> None:
        if self._plan is None:  # the server has closed an idle connection
            self._drop()
            return
        outcome: list[Any] | Exception
        try:
            # The loop must forget the socket before it is closed. A child that was forked meanwhile keeps it open, and
            # the loop would be woken by it for ever.
            outcome = [self._connection.read_response(disconnect_on_error=False)]
        except ResponseError as error:
            outcome = [error]
        except FAILURES as error:
            self._drop()
            outcome = error
        self._proceed(outcome)

    def _on_timer(self) -> None:
        # One timer serves all calls: a timer a call would fill the loop's heap with cancelled ones.
        self._timer = None
        if self._plan is None:
            return
        left = self._deadline - monotonic()
        if left > 0:
            self._timer = self._hub.call_later(left, self._on_timer)
            return
        self._drop()
        self._proceed(RedisTimeoutError(f"no answer within {self._timeout:g} s"))

    def _connect(self, node: Node) -> None:
        if self._connection is not None and self._node is node:
            return
        self._drop()
        self._node, self._connection = node, node.connect()
        self._hub.add_reader(_socket_of(self._connection), self._on_readable)
        poller = select.poll()
        poller.register(_socket_of(self._connection), select.POLLIN)
        self._poll = poller.poll

    def _drop(self) -> None:
        connection, self._connection, node, self._node = self._connection, None, self._node, None
        self._poll = None
        if connection is None or node is None:
            return
        sock = _socket_of(connection)
        if sock is not None:
            self._hub.remove_reader(sock)
        connection.disconnect()
        node.release(connection)


def _socket_of(connection: Any) -> Any:
    return connection._sock  # noqa: SLF001 - redis-py shows it nowhere else, and kombu's own transport takes it here


class HubAsker:
    """
    Lets the event loop go on, and is told of the answer.

    Args:
        store: Where the levels live.
        active_limits: Which limits are in force.
        runner: Runs its scripts from the loop.
    """

    def __init__(self, store: RedisStore, active_limits: ActiveLimits, runner: EventLoopRunner) -> None:
        self._store = store
        self._edition = _Edition(active_limits)
        self._runner = runner

    def ask(self, asks: Sequence[AdmissionRequest], done: Callable[[Outcome], None], *, inline: bool) -> None:
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

        self._runner.run(*self._store.question(asks, self._edition.version), on_reply, inline=inline)

    def close(self) -> None:
        """See :class:`Asker`."""
        self._runner.close()

    def _read(self, asks: Sequence[AdmissionRequest], reply: Any) -> Outcome:
        return self._edition.check(*self._store.read(asks, self._edition.version, reply))


def begin_from(runner: EventLoopRunner) -> Callable[[Call[Any], Callable[[Any], None]], None]:
    """Return what makes calls of a :class:`RedisStore` from an event loop, one at a time; see :func:`begin_now`."""

    def begin(call: Any, done: Callable[[Any], None]) -> None:
        def on_reply(reply: Any) -> None:
            done(reply if isinstance(reply, StoreUnavailable) else call.read(reply))

        runner.run(call.script, call.keys, call.args, on_reply)

    return begin


def asker_for(store: Store, active_limits: ActiveLimits, hub: Any, timeout: float) -> Asker:
    """Return what suits a worker: *hub* is its event loop, ``None`` if it has none; *timeout* is in seconds."""
    if hub is not None and isinstance(store, RedisStore):
        return HubAsker(store, active_limits, EventLoopRunner(store.runner, hub, timeout))
    return DirectAsker(store, active_limits)
