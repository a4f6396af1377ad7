"""The token bucket for coroutines."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from bucketflow.algorithm.wait_queue import Waiter
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.errors import ConfigError, RateLimitExceeded
from bucketflow.limit import Limit
from bucketflow.local.base import Bucket
from bucketflow.validation import check_number, check_timeout

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["AsyncTokenBucket", "async_rate_limit"]

P = ParamSpec("P")
R = TypeVar("R")


class AsyncTokenBucket(Bucket):
    """
    A token bucket that coroutines share, in one event loop or in several threads' loops at once.

    What waits is awaited: :meth:`consume`. What only looks or gives back needs no await: ``wait_time``, ``reserve``,
    ``refund``, ``try_consume``. Parameters and errors are those of :class:`bucketflow.TokenBucket`.
    """

    _KIND = "AsyncTokenBucket"

    async def get_tokens(self) -> float:
        """Return the tokens in the bucket now."""
        return self._tokens()

    async def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens*, all or none.

        Waiting coroutines are served in the order in which they came, and nobody else is served before them.
        Whoever is refused or cancelled has spent nothing, and those behind move up. Parameters, result and errors
        are those of :meth:`bucketflow.TokenBucket.consume`.
        """
        if timeout is not None:
            check_timeout(timeout, block=block)
        one, step, _, slot, read, scale, most = self._fast_path
        if tokens is not one:
            step = self._step_of(tokens)
            slot = slot if step else []  # 0 only looks
        # As in TokenBucket.consume, but with a plain pop: asyncio makes Ctrl-C a cancellation, which comes at an await.
        try:
            full_at = slot.pop()
        except IndexError:
            if self._consume(tokens):
                return True
        else:
            try:
                now = read() * scale + 2.0**52 - 2.0**52
                behind = full_at - now + step if full_at > now else step
                if behind <= most:
                    full_at = now + behind
                    return True
            finally:
                slot.append(full_at)
        return block and await self._wait(tokens, timeout)

    async def _wait(self, cost: float, timeout: float | None) -> bool:
        wake = asyncio.Event()
        waiter = Waiter(cost, functools.partial(_wake_from_any_thread, asyncio.get_running_loop(), wake))
        try:
            deadline = self._join(waiter, timeout)
            while (left := self._left(waiter, deadline)) is not None:
                await self._clock.sleep_async(left, wake)
                wake.clear()
        except BaseException:  # also CancelledError, and GeneratorExit of a task nobody finished
            self._abandon(waiter)
            raise
        if not waiter.granted:
            self._abandon(waiter)
        return waiter.granted


def _wake_from_any_thread(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    # A loop that was closed over its tasks has nobody to wake; their waiters are granted in time, to nobody.
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


class AsyncRateLimit(Protocol):
    """What :func:`async_rate_limit` returns: a decorator that keeps parameters and result."""

    @overload
    def __call__(self, func: Callable[P, Awaitable[R]], /) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Callable[P, Coroutine[Any, Any, R]]: ...


def async_rate_limit(
    tokens_per_second: float,
    capacity: float | None = None,
    block: bool = True,  # noqa: FBT001, FBT002 - the signature of 0.1.0
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncRateLimit:
    """
    Let a coroutine function start no more often than the limit allows.

    All its callers share one bucket, whichever object or event loop they call it through. A plain function becomes a
    coroutine function.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may come at once; by default one second's worth, at least 1.
        block: Whether a call waits for its turn; otherwise it raises.
        clock: See :class:`AsyncTokenBucket`.

    Raises:
        ConfigError: A number is not one, or too small; or what is decorated cannot be called.
        RateLimitExceeded: From the call, with ``block=False``: not now. It carries ``retry_after`` in seconds.
    """
    limit = limit_of(tokens_per_second, capacity)

    def decorate(func: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        key = name_of(func)
        bucket = AsyncTokenBucket(limit.capacity, limit.fill_rate, clock=clock, name=key)

        @functools.wraps(func)
        async def limited(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - AsyncRateLimit says it better
            if block:
                await bucket.consume(block=True)
            else:
                decision = bucket.try_consume()
                if not decision.allowed:
                    raise RateLimitExceeded(key, 1, decision.retry_after)
            result = func(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return limited

    return decorate


def limit_of(tokens_per_second: float, capacity: float | None) -> Limit:
    """Return the limit of a decorator. A bucket below 1 token could grant no call, so that is the least."""
    check_number("tokens_per_second", tokens_per_second, "a number above 0, as in @rate_limit(10)", above=True)
    if capacity is None:
        return Limit(max(1.0, tokens_per_second), tokens_per_second)
    return Limit(check_number("capacity", capacity, "a number of calls, 1 or more", minimum=1), tokens_per_second)


def name_of(func: Callable[..., object]) -> str:
    """Return what errors call *func*; raise ConfigError if it cannot be called, or can be called only in part."""
    if not callable(func):
        raise ConfigError("func", func, "a function: put the decorator under @classmethod or @property")
    if inspect.isasyncgenfunction(func):
        raise ConfigError("func", func, "a function or coroutine function, not an asynchronous generator")
    return getattr(func, "__qualname__", None) or repr(func)
