"""
Runs calls to Redis from a worker's event loop: the loop goes on, and the reply wakes it.

What a blocking call costs a busy worker is not its own time but the wait: on a machine without a free core the server,
and then the worker, must be scheduled first. Meanwhile this worker receives, starts and acknowledges tasks.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.connection import Node
from bucketflow.redis_client.replies import spoils_connection
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.spin_wait import SpinWait
from bucketflow.redis_client.topology import FAILURES, CallPlan, Exchange, advance
from bucketflow_celery.store.calls import BlockingRunner, CallRunner
from bucketflow_celery.store.interfaces import Store
from bucketflow_celery.store.redis_store import RedisStore

__all__ = ["WORKER_CONNECTIONS", "EventLoopRunner", "runner_for", "warn_of_few_connections"]

logger = logging.getLogger("bucketflow_celery.worker")

#: Number of connections that a worker uses at most: of three runners of the event loop, of calls that block it, of the
#: lease of parked tasks, and of a subscription.
WORKER_CONNECTIONS = 6

#: Milliseconds that an inline call waits for its reply.
INLINE_WAIT_MS = 1
#: Number of inline calls that do not wait after one that waited in vain.
INLINE_BACKOFF = 100

_Poll = Callable[[int], list[tuple[int, int]]]


class EventLoopRunner:
    """
    Implements :class:`bucketflow_celery.store.calls.CallRunner` over one connection that the event loop watches.

    It runs calls of :class:`~bucketflow_celery.store.redis_store.RedisStore` only.

    Args:
        runner: Knows the servers.
        hub: Kombu's event loop.
        timeout: Seconds that a server may take to answer.
        clock: Returns seconds; never steps.
    """

    def __init__(self, runner: ScriptRunner, hub: Any, timeout: float, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._runner = runner
        self._hub = hub
        self._timeout = timeout
        self._node: Node | None = None
        self._connection: Any = None
        self._socket: Any = None
        self._call: Any = None
        self._plan: CallPlan | None = None
        self._exchange: Exchange | None = None
        self._on_reply: Callable[[Any], None] | None = None
        self._used_at = 0.0
        self._deadline = 0.0
        self._timer: Any = None
        self._poll: _Poll | None = None
        self._inline_wait = _InlineWait()

    def run(self, call: Any, on_reply: Callable[[Any], None], *, inline: bool = False) -> None:
        """See :class:`~bucketflow_celery.store.calls.CallRunner`; *call* is a ``RedisStoreCall``."""
        self._call, self._on_reply = call, on_reply
        self._plan = self._runner.plan(call.script, call.keys, call.args)
        self._send(next(self._plan))
        if inline and self._plan is not None and self._poll is not None and self._inline_wait.is_ready(self._poll):
            self._on_readable()

    def close(self) -> None:
        """Drop the call in flight and close the connection; the next call opens another."""
        self._plan = self._on_reply = self._call = None
        self._disconnect()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, exchange: Exchange) -> None:
        self._exchange = exchange
        try:
            is_idle = self._clock() - self._used_at >= exchange.node.max_idle  # it may have been dropped silently
            if is_idle or self._connection is None or self._node is not exchange.node:
                self._connect(exchange.node)
            # Not send_packed_command: after an error it closes the socket itself, see _on_readable.
            self._socket.sendall(b"".join(exchange.commands))
        except FAILURES as error:
            self._disconnect()
            self._advance(error)
            return
        self._deadline = self._clock() + self._timeout
        if self._timer is None:
            self._timer = self._hub.call_later(self._timeout, self._on_timer)

    def _advance(self, outcome: Any) -> None:
        """Go on after *outcome*: replies to the exchange, or the error that prevented them."""
        if self._plan is None or self._exchange is None or self._on_reply is None:
            return
        try:
            exchange = advance(self._plan, self._exchange, outcome)
        except StopIteration as finished:
            (reply,) = finished.value
        except StoreUnavailable as error:
            reply = error
        else:
            self._send(exchange)
            return
        call, on_reply = self._call, self._on_reply
        self._plan = self._on_reply = self._call = None
        on_reply(reply if isinstance(reply, StoreUnavailable) else call.read(reply))

    def _on_readable(self) -> None:
        if self._plan is None:  # the server has closed an idle connection
            self._disconnect()
            return
        outcome: list[Any] | Exception
        try:
            # The loop must forget the socket before it is closed. A child that was forked meanwhile keeps it open, and
            # the loop would be woken by it for ever.
            outcome = [self._connection.read_response(disconnect_on_error=False)]
        except ResponseError as error:
            outcome = [error]
            if spoils_connection(error):
                self._disconnect()
        except FAILURES as error:
            self._disconnect()
            outcome = error
        self._used_at = self._clock()
        self._advance(outcome)

    def _on_timer(self) -> None:
        # One timer serves all calls: a timer a call would fill the loop's heap with cancelled ones.
        self._timer = None
        if self._plan is None:
            return
        left = self._deadline - self._clock()
        if left > 0:
            self._timer = self._hub.call_later(left, self._on_timer)
            return
        self._disconnect()
        self._advance(RedisTimeoutError(f"no answer within {self._timeout:g} s"))

    def _connect(self, node: Node) -> None:
        self._disconnect()
        self._node, self._connection = node, node.connect()
        # redis-py shows the socket nowhere else, and kombu's own transport takes it from there.
        self._socket = self._connection._sock  # noqa: SLF001
        self._used_at = self._clock()
        self._hub.add_reader(self._socket, self._on_readable)
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        self._poll = poller.poll

    def _disconnect(self) -> None:
        connection, self._connection, node, self._node = self._connection, None, self._node, None
        self._poll = None
        if connection is None or node is None:
            return
        if connection._sock is not None:  # noqa: SLF001 - else it has closed the socket itself
            self._hub.remove_reader(self._socket)
        self._socket = None
        connection.disconnect()
        node.release(connection)


class _InlineWait:
    """
    Waits up to a millisecond for a reply, as long as that pays.

    Through the loop a reply is seen a turn later, and a turn takes longer than a server on the same machine. A server
    that does not answer within the wait is far away or busy: the next calls leave its reply to the loop. The first part
    of the wait is spent spinning, where that pays.
    """

    __slots__ = ("_skip", "_spin_wait")

    def __init__(self) -> None:
        self._spin_wait = SpinWait()
        self._skip = 0

    def is_ready(self, poll: _Poll) -> bool:
        """Return whether a reply is there; *poll* waits for it for a number of milliseconds."""
        if self._skip > 0:
            self._skip -= 1
            return False
        self._spin_wait.wait(lambda: poll(0))
        is_ready = bool(poll(INLINE_WAIT_MS))
        if not is_ready:
            self._skip = INLINE_BACKOFF
        return is_ready


def runner_for(store: Store, hub: Any, timeout: float) -> CallRunner:
    """
    Return the runner that suits a worker.

    An :class:`EventLoopRunner` keeps its connection. With too few of them for that, each call blocks the loop and gives
    its connection back.

    Args:
        store: Where the levels live.
        hub: Kombu's event loop; ``None`` if the worker has none.
        timeout: Seconds that a server may take to answer.
    """
    if hub is not None and isinstance(store, RedisStore) and store.runner.max_connections >= WORKER_CONNECTIONS:
        return EventLoopRunner(store.runner, hub, timeout)
    return BlockingRunner()


def warn_of_few_connections(store: Store) -> None:
    """Log a warning if a worker may open fewer connections to *store* than it uses."""
    if isinstance(store, RedisStore) and store.runner.max_connections < WORKER_CONNECTIONS:
        logger.warning(
            "max_connections is %d, a worker uses up to %d: its calls to Redis share them, and wait for each other",
            store.runner.max_connections,
            WORKER_CONNECTIONS,
        )
