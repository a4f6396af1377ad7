"""
Batching of concurrent requests: requests for one path share a script call, calls for several paths share a round trip.

The scheme is that of a database's group commit. While no batch is in flight, a request is sent at once, alone. Requests
that arrive during a round trip become pending; when it ends, one of their callers becomes the leader and sends all of
them as the next batch. Each request gets the reply that it would have got alone. No request waits for others to join
it, and the number of round trips does not grow with the number of callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from threading import get_ident
from typing import Any, Protocol

import redis

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.topology import ScriptCall

__all__ = ["AsyncBatcher", "BatchTarget", "PathReply", "ReadReply", "ThreadBatcher"]

#: Maximum number of requests in one round trip.
_MAX_BATCH = 128

#: µs until the tokens are there (0: granted), index of the binding level or -1, then the deficit of each level in µs.
PathReply = tuple[float, ...]

#: Decodes the reply to one call: a path reply for each of its costs, same order.
ReadReply = Callable[[bytes], Sequence[PathReply]]

RunAll = Callable[[Sequence[ScriptCall]], list[Any]]
AsyncRunAll = Callable[[Sequence[ScriptCall]], Awaitable[list[Any]]]


class BatchTarget(Protocol):
    """A path of buckets, as the batchers see it. A cost is in tokens; a negative one is evaluated but not taken."""

    def answer_locally(self, cost: float) -> PathReply | None:
        """Return the reply for *cost* if it needs no call to Redis, else ``None``."""

    def prepare(self, costs: tuple[float, ...]) -> tuple[ScriptCall, ReadReply]:
        """Return the call that evaluates *costs*, length >= 1, and the function that decodes its reply."""


class _PendingCall:
    """
    A request that waits for the next batch.

    Attributes:
        wakeup: Wakes the caller, which has become the leader or has its result: a held lock, or a future.
        thread: Identifier of the caller's thread; 0 for a coroutine.
        reply: The result, once there is one.
        error: The error, if there will be no reply.
        is_leader: Whether the caller must send the next batch.
    """

    __slots__ = ("cost", "error", "is_leader", "path", "reply", "thread", "wakeup")

    def __init__(self, path: BatchTarget, cost: float, wakeup: Any, thread: int = 0) -> None:  # noqa: ANN401 - a lock, or a future
        self.path = path
        self.cost = cost
        self.wakeup = wakeup
        self.thread = thread
        self.reply: PathReply | None = None
        self.error: StoreUnavailable | None = None
        self.is_leader = False

    def fail(self, error: StoreUnavailable) -> None:
        """Set a copy of *error*: each caller raises an exception object of its own."""
        self.error = StoreUnavailable(error.store, error.reason)
        self.error.__cause__ = error.__cause__

    def result(self) -> PathReply:
        """Return the reply, or raise the error."""
        if self.reply is None:
            raise self.error or StoreUnavailable("the store", "the call that sent this request was interrupted")
        return self.reply


class _Batch:
    """
    Requests that share a round trip.

    Attributes:
        calls: The calls to run, one a path; empty if every request was answered locally.
    """

    def __init__(self, requests: Sequence[_PendingCall]) -> None:
        groups: dict[BatchTarget, list[_PendingCall]] = {}
        for request in requests:
            request.reply = request.path.answer_locally(request.cost)  # a lease may have arrived since it was submitted
            if request.reply is None:
                groups.setdefault(request.path, []).append(request)
        prepared = [path.prepare(tuple([request.cost for request in group])) for path, group in groups.items()]
        self.calls = [call for call, _ in prepared]
        self._groups = [(read, group) for (_, read), group in zip(prepared, groups.values(), strict=True)]

    def distribute(self, results: Sequence[Any]) -> StoreUnavailable | None:
        """Pass the *results* of the calls to their requests; return the error if the server timed out."""
        timed_out = None
        for (read, group), result in zip(self._groups, results, strict=True):
            if isinstance(result, StoreUnavailable):
                for request in group:
                    request.fail(result)
                timed_out = result if _is_timeout(result) else timed_out
            else:
                for request, reply in zip(group, read(result), strict=True):
                    request.reply = reply
        return timed_out


def _is_timeout(error: StoreUnavailable) -> bool:
    return isinstance(error.__cause__, redis.TimeoutError)


class ThreadBatcher:
    """
    Batches the requests of threads: the thread of one pending request leads the next batch.

    An exception from a signal handler may interrupt a thread between any two lines, also while it leads. So a handler
    that runs in the leader's thread sends its request at once, instead of waiting for its own thread. And a pending
    request whose leader is lost takes the lead itself after *leader_timeout*. Two leaders at a time do no harm: they
    send separate batches.

    Args:
        run_call: Runs one call, or raises ``StoreUnavailable``.
        run_all: Runs calls in one round trip, see :meth:`bucketflow.redis_client.runner.ScriptRunner.run_all`.
        leader_timeout: Seconds; longer than two round trips can take.
    """

    def __init__(self, run_call: Callable[[ScriptCall], Any], run_all: RunAll, leader_timeout: float) -> None:
        self._run_call = run_call
        self._run_all = run_all
        self._leader_timeout = min(leader_timeout, threading.TIMEOUT_MAX)
        self.reset()

    def reset(self) -> None:
        """Drop all requests: in a forked child the threads that submitted them do not exist."""
        self._lock = threading.RLock()
        self._pending: list[_PendingCall] = []
        self._leader = 0  # thread identifier; 0: no batch is in flight

    def submit(self, path: BatchTarget, cost: float) -> PathReply:
        """
        Return the reply for *cost* on *path*.

        Raises:
            StoreUnavailable: The call failed, or the server timed out on the batch before it.
        """
        request, thread = None, get_ident()
        with self._lock:
            if self._leader in (0, thread):
                self._leader = thread
            else:
                request = _PendingCall(path, cost, threading.Lock(), thread)
                request.wakeup.acquire()
                self._pending.append(request)
        return self._run_alone(path, cost) if request is None else self._run_batched(request)

    def _run_alone(self, path: BatchTarget, cost: float) -> PathReply:
        timed_out = None
        try:
            call, read = path.prepare((cost,))
            return read(self._run_call(call))[0]
        except StoreUnavailable as error:
            timed_out = error if _is_timeout(error) else None
            raise
        finally:
            self._appoint_leader(timed_out)

    def _run_batched(self, request: _PendingCall) -> PathReply:
        sent: list[_PendingCall] = []
        timed_out = None
        try:
            if not request.wakeup.acquire(timeout=self._leader_timeout):
                self._take_lead(request)
            if request.is_leader:
                with self._lock:
                    sent, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                batch = _Batch(sent)
                timed_out = batch.distribute(self._run_all(batch.calls) if batch.calls else ())
        finally:  # also after KeyboardInterrupt: the other requests still need a leader
            with self._lock:
                if request in self._pending:
                    self._pending.remove(request)
            if request.is_leader:
                self._appoint_leader(timed_out)
            for other in sent:
                _wake_thread(other)
        return request.result()

    def _take_lead(self, request: _PendingCall) -> None:
        with self._lock:
            if request in self._pending:
                self._pending.remove(request)
                self._pending.insert(0, request)
                self._leader, request.is_leader = request.thread, True

    def _appoint_leader(self, timed_out: StoreUnavailable | None) -> None:
        """
        Let the first pending request lead the next batch.

        If the server *timed_out*, fail all pending requests instead: they have waited for a timeout already.
        """
        with self._lock:
            if timed_out is not None:
                for request in self._pending:
                    request.fail(timed_out)
                    _wake_thread(request)
                self._pending = []
            self._leader = self._pending[0].thread if self._pending else 0
            if self._pending:
                self._pending[0].is_leader = True
                _wake_thread(self._pending[0])


def _wake_thread(request: _PendingCall) -> None:
    with suppress(RuntimeError):  # it is awake already
        request.wakeup.release()


class AsyncBatcher:
    """
    Batches the requests of one event loop: the first is sent by its own coroutine, later ones by a background task.

    Args:
        run_call: Runs one call, or raises ``StoreUnavailable``.
        run_all: Runs calls in one round trip, see :meth:`bucketflow.redis_client.runner.AsyncScriptRunner.run_all`.
    """

    def __init__(self, run_call: Callable[[ScriptCall], Awaitable[Any]], run_all: AsyncRunAll) -> None:
        self._run_call = run_call
        self._run_all = run_all
        self._loop = asyncio.get_running_loop()
        self._pending: list[_PendingCall] = []
        self._in_flight = False
        self._task: asyncio.Task[None] | None = None

    async def submit(self, path: BatchTarget, cost: float) -> PathReply:
        """
        Return the reply for *cost* on *path*, see :meth:`ThreadBatcher.submit`.

        A coroutine that is cancelled before its request was sent has spent nothing.
        """
        if self._in_flight:
            return await self._join(_PendingCall(path, cost, self._loop.create_future()))
        self._in_flight = True
        try:
            call, read = path.prepare((cost,))
            return read(await self._run_call(call))[0]
        except StoreUnavailable as error:
            self._fail_after_timeout(error)
            raise
        finally:
            self._in_flight = bool(self._pending) and not self._loop.is_closed()
            if self._in_flight:
                self._task = self._loop.create_task(self._drain())

    async def _join(self, request: _PendingCall) -> PathReply:
        self._pending.append(request)
        try:
            await request.wakeup
        except BaseException:
            if request in self._pending:
                self._pending.remove(request)
            raise
        return request.result()

    async def _drain(self) -> None:
        sent: list[_PendingCall] = []
        try:
            while self._pending:
                sent, self._pending = self._pending[:_MAX_BATCH], self._pending[_MAX_BATCH:]
                batch = _Batch(sent)
                timed_out = batch.distribute(await self._run_all(batch.calls) if batch.calls else ())
                _wake_coroutines(sent)
                if timed_out is not None:
                    self._fail_after_timeout(timed_out)
                await asyncio.sleep(0)  # the woken coroutines may submit again: together, not each alone a moment later
        finally:
            self._in_flight = False
            _wake_coroutines([*sent, *self._pending])  # some still wait if the task was cancelled

    def _fail_after_timeout(self, error: StoreUnavailable) -> None:
        """Fail all pending requests if *error* is a timeout: they have waited for it already."""
        if _is_timeout(error):
            failed, self._pending = self._pending, []
            for request in failed:
                request.fail(error)
            _wake_coroutines(failed)


def _wake_coroutines(requests: Sequence[_PendingCall]) -> None:
    for request in requests:
        if not request.wakeup.done():
            request.wakeup.set_result(None)
