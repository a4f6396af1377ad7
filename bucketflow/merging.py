"""
Put what waits in one round trip: questions for one bucket in one call, calls for several buckets in one exchange.

Whoever finds nobody asking asks at once, alone. Those who come while an answer is under way wait for it, and are then
asked for together; each is answered as if it had come alone. So nobody waits for company, and under load the number
of round trips does not grow with the number of callers.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import redis

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_routes import Call

__all__ = ["Answer", "Asked", "AsyncMerger", "Request", "ThreadMerger"]

#: Most questions in one exchange.
_MOST = 128

#: µs to wait, the binding level from 0 or -1, then µs behind full at each level.
Answer = tuple[float, ...]


class Request:
    """
    One question.

    Args:
        bucket: Whom it is for.
        cost: Tokens; negative: whether as many are there, taking none.

    Attributes:
        answer: Once it is there.
        error: Why there is none.
        asked_at: For the bucket to note when its call left, in µs.
        turn: What its caller waits for: the answer, or its turn to ask.
        asks: Whether its caller was told to ask for all that wait.
    """

    __slots__ = ("answer", "asked_at", "asks", "bucket", "cost", "error", "turn")

    def __init__(self, bucket: Asked, cost: float) -> None:
        self.bucket = bucket
        self.cost = cost
        self.answer: Answer | None = None
        self.error: StoreUnavailable | None = None
        self.asked_at = 0
        self.turn: Any = None
        self.asks = False

    def fail(self, error: StoreUnavailable) -> None:
        """Note that there will be no answer; each caller raises an error of its own."""
        self.error = StoreUnavailable(error.store, error.reason)
        self.error.__cause__ = error.__cause__

    def result(self) -> Answer:
        """Return the answer, or raise the error."""
        if self.answer is None:
            raise self.error or StoreUnavailable("the store", "the call was interrupted")
        return self.answer


class Asked(Protocol):
    """A bucket, as a merger sees it."""

    def call(self, requests: Sequence[Request]) -> Call | None:
        """Return the call for *requests*, length >= 1; it may answer some, or all, without one."""

    def settle(self, requests: Sequence[Request], reply: bytes) -> None:
        """Answer *requests* by the *reply* to their call; same length and order."""


class _Batch:
    """Questions that are asked at once. Pure."""

    def __init__(self, requests: Sequence[Request]) -> None:
        groups: dict[Asked, list[Request]] = {}
        for request in requests:
            groups.setdefault(request.bucket, []).append(request)
        self._asked: list[tuple[Asked, list[Request]]] = []
        self.calls: list[Call] = []
        for bucket, group in groups.items():
            call = bucket.call(group)
            if call is not None:
                self.calls.append(call)
                self._asked.append((bucket, [request for request in group if request.answer is None]))

    def settle(self, results: Sequence[Any]) -> StoreUnavailable | None:
        """Answer everybody; return the error if the server did not answer in time."""
        late = None
        for (bucket, group), result in zip(self._asked, results, strict=True):
            if not isinstance(result, StoreUnavailable):
                bucket.settle(group, result)
                continue
            for request in group:
                request.fail(result)
            if isinstance(result.__cause__, redis.TimeoutError):
                late = result
        return late


class ThreadMerger:
    """
    For threads: one of those who wait asks for all of them.

    Args:
        run_all: Runs calls in one exchange, see :meth:`bucketflow.redis_calls.ScriptRunner.run_all`.
    """

    def __init__(self, run_all: Callable[[Sequence[Call]], list[Any]]) -> None:
        self._run_all = run_all
        self.reset()

    def reset(self) -> None:
        """Forget all calls: in a forked child those who made them are not there."""
        self._lock = threading.Lock()
        self._waiting: list[Request] = []
        self._is_asking = False

    def ask(self, bucket: Asked, cost: float) -> Answer:
        """
        Return the answer to one question, see :class:`Request`.

        Raises:
            StoreUnavailable: The server did not answer this call, or timed out on the one before it.
        """
        request = Request(bucket, cost)
        with self._lock:
            if self._is_asking:
                request.turn = threading.Lock()
                request.turn.acquire()
                self._waiting.append(request)
            else:
                self._is_asking = request.asks = True
        if not request.asks:
            self._wait(request)
        if request.asks:
            self._put(request)
        return request.result()

    def _wait(self, request: Request) -> None:
        try:
            request.turn.acquire()
        except BaseException:  # also KeyboardInterrupt: the others must be asked for all the same
            with self._lock:
                if request in self._waiting:
                    self._waiting.remove(request)
                if request.asks:
                    self._pass_on()
            raise

    def _put(self, request: Request) -> None:
        batch = [request]
        late: StoreUnavailable | None = None
        try:
            if request.turn is not None:
                with self._lock:
                    batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
            together = _Batch(batch)
            late = together.settle(self._run_all(together.calls) if together.calls else ())
        finally:
            with self._lock:
                if late is not None:  # those who came meanwhile have waited for nothing, and would again
                    for other in self._waiting:
                        other.fail(late)
                    batch, self._waiting = [*batch, *self._waiting], []
                self._pass_on()
            for other in batch:
                if other is not request:
                    other.turn.release()

    def _pass_on(self) -> None:
        """Let the first of those who wait ask for all of them. Needs the lock."""
        self._is_asking = bool(self._waiting)
        if self._waiting:
            self._waiting[0].asks = True
            self._waiting[0].turn.release()


class AsyncMerger:
    """
    For coroutines of one event loop: the first asks for itself, then a task for all who came meanwhile.

    Args:
        run_all: Runs calls in one exchange, see :meth:`bucketflow.redis_calls.AsyncScriptRunner.run_all`.
    """

    def __init__(self, run_all: Callable[[Sequence[Call]], Awaitable[list[Any]]]) -> None:
        self._run_all = run_all
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Request] = []
        self._is_asking = False
        self._task: asyncio.Task[None] | None = None

    async def ask(self, bucket: Asked, cost: float) -> Answer:
        """Do what :meth:`ThreadMerger.ask` does. Whoever is cancelled before the call has left has spent nothing."""
        request = Request(bucket, cost)
        if self._is_asking:
            request.turn = self._loop.create_future()
            self._waiting.append(request)
            try:
                await request.turn
            except BaseException:
                if request in self._waiting:
                    self._waiting.remove(request)
                raise
        else:
            self._is_asking = True
            try:
                await self._put([request])
            finally:
                self._is_asking = bool(self._waiting) and not self._loop.is_closed()
                if self._is_asking:
                    self._task = self._loop.create_task(self._work())
        return request.result()

    async def _work(self) -> None:
        batch: list[Request] = []
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_MOST], self._waiting[_MOST:]
                await self._put(batch)
                await asyncio.sleep(0)  # whoever was answered may ask again, and would be alone a moment later
        finally:
            self._is_asking = False
            _wake([*batch, *self._waiting])  # unless the loop is being closed over them, there are none

    async def _put(self, batch: list[Request]) -> None:
        together = _Batch(batch)
        late = together.settle(await self._run_all(together.calls) if together.calls else ())
        if late is not None:  # see ThreadMerger
            for request in self._waiting:
                request.fail(late)
            batch, self._waiting = [*batch, *self._waiting], []
        _wake(batch)


def _wake(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.turn is not None and not request.turn.done():
            request.turn.set_result(None)
