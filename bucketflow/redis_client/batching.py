"""
Put what waits in one round trip: questions for one path in one call, calls for several paths in one exchange.

Whoever finds nobody asking asks at once, alone. Those who come while an answer is under way wait for it, and are then
asked for together; each is answered as if it had come alone. So nobody waits for company, and under load the number
of round trips does not grow with the number of callers.
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

__all__ = ["Answer", "AsyncBatcher", "BatchTarget", "ThreadBatcher"]

#: Most questions in one exchange.
_MOST = 128

#: µs to wait, the binding level from 0 or -1, then µs behind full at each level.
Answer = tuple[float, ...]

RunAll = Callable[[Sequence[ScriptCall]], list[Any]]
AsyncRunAll = Callable[[Sequence[ScriptCall]], Awaitable[list[Any]]]


class BatchTarget(Protocol):
    """A path of buckets, as a batcher sees it. A cost is a number of tokens; negative: whether they are there."""

    def answer_locally(self, cost: float) -> Answer | None:
        """Return the answer to one exchange if it can be given here."""

    def call(self, costs: tuple[float, ...]) -> ScriptCall:
        """Return the call that answers *costs*, length >= 1."""

    def answers(self, call: ScriptCall, reply: bytes) -> Sequence[Answer]:
        """Return an answer for each cost of *call*, same order, from the reply to it."""


class _PendingCall:
    """
    A exchange that waits.

    Attributes:
        answer: Once it is there.
        error: Why there is none.
        turn: What its caller waits for: the answer, or its turn to ask.
        asks: Whether its caller was told to ask for all that wait.
        thread: Its caller's.
    """

    __slots__ = ("answer", "asks", "cost", "error", "path", "thread", "turn")

    def __init__(self, path: BatchTarget, cost: float, turn: Any, thread: int = 0) -> None:  # noqa: ANN401 - a lock, or a future
        self.path = path
        self.cost = cost
        self.turn = turn
        self.thread = thread
        self.answer: Answer | None = None
        self.error: StoreUnavailable | None = None
        self.asks = False

    def fail(self, error: StoreUnavailable) -> None:
        """Note that there will be no answer; each caller raises an error of its own."""
        self.error = StoreUnavailable(error.store, error.reason)
        self.error.__cause__ = error.__cause__

    def result(self) -> Answer:
        """Return the answer, or raise the error."""
        if self.answer is None:
            raise self.error or StoreUnavailable("the store", "whoever asked it was interrupted")
        return self.answer


class _Batch:
    """
    Questions that are asked at once. Pure.

    Attributes:
        calls: What to run; it may be nothing.
    """

    def __init__(self, requests: Sequence[_PendingCall]) -> None:
        self._groups: dict[BatchTarget, list[_PendingCall]] = {}
        for request in requests:
            request.answer = request.path.answer_locally(request.cost)  # it may have come since this one began to wait
            if request.answer is None:
                self._groups.setdefault(request.path, []).append(request)
        self.calls = [path.call(tuple([request.cost for request in group])) for path, group in self._groups.items()]

    def settle(self, results: Sequence[Any]) -> StoreUnavailable | None:
        """Answer everybody by the *results* of the calls; return the error if the server did not answer in time."""
        late = None
        for (path, group), call, result in zip(self._groups.items(), self.calls, results, strict=True):
            if isinstance(result, StoreUnavailable):
                for request in group:
                    request.fail(result)
                late = result if _is_late(result) else late
            else:
                for request, answer in zip(group, path.answers(call, result), strict=True):
                    request.answer = answer
        return late


def _is_late(error: StoreUnavailable) -> bool:
    return isinstance(error.__cause__, redis.TimeoutError)


class ThreadBatcher:
    """
    For threads: one of those who wait asks for all of them.

    An exception out of a signal handler may end a call between any two lines, so nobody relies on whoever asks: the
    same thread does not wait for itself, and others take over when their patience ends. Two who ask at once do no harm.

    Args:
        run_call: Runs one call, or raises ``StoreUnavailable``.
        run_all: Runs calls in one exchange, see :meth:`bucketflow.redis_client.runner.ScriptRunner.run_all`.
        patience: Seconds, more than two exchanges can take.
    """

    def __init__(self, run_call: Callable[[ScriptCall], Any], run_all: RunAll, patience: float) -> None:
        self._run_call = run_call
        self._run_all = run_all
        self._patience = min(patience, threading.TIMEOUT_MAX)
        self.reset()

    def reset(self) -> None:
        """Forget all calls: in a forked child those who made them are not there."""
        self._lock = threading.RLock()
        self._waiting: list[_PendingCall] = []
        self._asker = 0  # the thread that asks

    def submit(self, path: BatchTarget, cost: float) -> Answer:
        """
        Return the answer to one exchange.

        Raises:
            StoreUnavailable: The server did not answer this call, or timed out on the one before it.
        """
        request, thread = None, get_ident()
        with self._lock:
            if self._asker in (0, thread):
                self._asker = thread
            else:
                request = _PendingCall(path, cost, threading.Lock(), thread)
                request.turn.acquire()
                self._waiting.append(request)
        return self._ask_alone(path, cost) if request is None else self._ask_together(request)

    def _ask_alone(self, path: BatchTarget, cost: float) -> Answer:
        late = None
        try:
            call = path.call((cost,))
            return path.answers(call, self._run_call(call))[0]
        except StoreUnavailable as error:
            late = error if _is_late(error) else None
            raise
        finally:
            self._pass_on(late)

    def _ask_together(self, request: _PendingCall) -> Answer:
        batch: list[_PendingCall] = []
        late = None
        try:
            if not request.turn.acquire(timeout=self._patience):
                self._take_over(request)
            if request.asks:
                with self._lock:
                    batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                together = _Batch(batch)
                late = together.settle(self._run_all(together.calls) if together.calls else ())
        finally:  # also after KeyboardInterrupt: the others must be asked for all the same
            with self._lock:
                if request in self._waiting:
                    self._waiting.remove(request)
            if request.asks:
                self._pass_on(late)
            for other in batch:
                _release(other)
        return request.result()

    def _take_over(self, request: _PendingCall) -> None:
        with self._lock:
            if request in self._waiting:
                self._waiting.remove(request)
                self._waiting.insert(0, request)
                self._asker, request.asks = request.thread, True

    def _pass_on(self, late: StoreUnavailable | None) -> None:
        """Let the first of those who wait ask for all; if the server was *late*, they have waited long enough, too."""
        with self._lock:
            if late is not None:
                for request in self._waiting:
                    request.fail(late)
                    _release(request)
                self._waiting = []
            self._asker = self._waiting[0].thread if self._waiting else 0
            if self._waiting:
                self._waiting[0].asks = True
                _release(self._waiting[0])


def _release(request: _PendingCall) -> None:
    with suppress(RuntimeError):  # it is awake already
        request.turn.release()


class AsyncBatcher:
    """
    For coroutines of one event loop: the first asks for itself, then a task for all who came meanwhile.

    Args:
        run_call: Runs one call, or raises ``StoreUnavailable``.
        run_all: Runs calls in one exchange, see :meth:`bucketflow.redis_client.runner.AsyncScriptRunner.run_all`.
    """

    def __init__(self, run_call: Callable[[ScriptCall], Awaitable[Any]], run_all: AsyncRunAll) -> None:
        self._run_call = run_call
        self._run_all = run_all
        self._loop = asyncio.get_running_loop()
        self._waiting: list[_PendingCall] = []
        self._is_asking = False
        self._task: asyncio.Task[None] | None = None

    async def submit(self, path: BatchTarget, cost: float) -> Answer:
        """
        Do what :meth:`ThreadBatcher.submit` does.

        Whoever is cancelled before the call has left has spent nothing.
        """
        if self._is_asking:
            return await self._wait(_PendingCall(path, cost, self._loop.create_future()))
        self._is_asking = True
        try:
            call = path.call((cost,))
            return path.answers(call, await self._run_call(call))[0]
        except StoreUnavailable as error:
            self._fail(error)
            raise
        finally:
            self._is_asking = bool(self._waiting) and not self._loop.is_closed()
            if self._is_asking:
                self._task = self._loop.create_task(self._work())

    async def _wait(self, request: _PendingCall) -> Answer:
        self._waiting.append(request)
        try:
            await request.turn
        except BaseException:
            if request in self._waiting:
                self._waiting.remove(request)
            raise
        return request.result()

    async def _work(self) -> None:
        batch: list[_PendingCall] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                together = _Batch(batch)
                late = together.settle(await self._run_all(together.calls) if together.calls else ())
                _wake(batch)
                if late is not None:
                    self._fail(late)
                await asyncio.sleep(0)  # whoever was answered may ask again, and would be alone a moment later
        finally:
            self._is_asking = False
            _wake([*batch, *self._waiting])  # unless this was cut short, everybody is awake

    def _fail(self, error: StoreUnavailable) -> None:
        """Tell those who wait, if the server was late: they have waited long enough."""
        if _is_late(error):
            failed, self._waiting = self._waiting, []
            for request in failed:
                request.fail(error)
            _wake(failed)


def _wake(requests: Sequence[_PendingCall]) -> None:
    for request in requests:
        if not request.turn.done():
            request.turn.set_result(None)
