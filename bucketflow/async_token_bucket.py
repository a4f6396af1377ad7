"""Token bucket for coroutines, and the decorator for coroutine functions."""

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
    A token bucket that coroutines share, in one event loop or in the event loops of several threads.

    :meth:`consume` and :meth:`get_tokens` are coroutines. ``try_consume``, ``wait_time``, ``reserve`` and ``refund``
    never wait and need no await. Parameters and errors are those of :class:`bucketflow.TokenBucket`.
    """

    _KIND = "AsyncTokenBucket"

    async def get_tokens(self) -> float:
        """Return the tokens in the bucket now."""
        return self._tokens()

    async def consume(self, tokens: float = 1, block: bool = False, timeout: float | None = None) -> bool:  # noqa: FBT001, FBT002 - the signature of 0.1.0
        """
        Take *tokens*, all or none.

        Waiting coroutines are served in order of arrival, and no other caller overtakes them. A caller that is refused
        or cancelled spends nothing, and the callers behind it move up. Parameters, result and errors are those of
        :meth:`bucketflow.TokenBucket.consume`.
        """
        if timeout is not None:
            check_timeout(timeout, block=block)
        unchecked, refill, _, slot, read, scale, tolerance = self._fast_path
        if tokens is not unchecked:
            refill = self._refill_time(tokens)
            slot = slot if refill else []  # a cost of 0 takes nothing
        # As in TokenBucket.consume, but with a plain pop: asyncio turns a Ctrl-C into a cancellation at an await.
        try:
            full_at = slot.pop()
        except IndexError:
            if self._consume(tokens):
                return True
        else:
            try:
                now = read() * scale + 2.0**52 - 2.0**52
                deficit = full_at - now + refill if full_at > now else refill
                if deficit <= tolerance:
                    full_at = now + deficit
                    return True
            finally:
                slot.append(full_at)
        return block and await self._wait(tokens, timeout)

    async def _wait(self, cost: float, timeout: float | None) -> bool:
        wake = asyncio.Event()
        waiter = Waiter(cost, functools.partial(_wake_from_any_thread, asyncio.get_running_loop(), wake))
        try:
            deadline = self._join(waiter, timeout)
            while (left := self._time_left(waiter, deadline)) is not None:
                await self._clock.sleep_async(left, wake)
                wake.clear()
        except BaseException:  # also CancelledError, and GeneratorExit of a task that is never finished
            self._cancel(waiter)
            raise
        if not waiter.granted:
            self._cancel(waiter)
        return waiter.granted


def _wake_from_any_thread(loop: asyncio.AbstractEventLoop, wake: asyncio.Event) -> None:
    # A loop that was closed over its tasks cannot be woken. Their waiters stay in the queue until they are granted.
    if not loop.is_closed():
        loop.call_soon_threadsafe(wake.set)


class AsyncRateLimit(Protocol):
    """Decorator that keeps parameters and result, as :func:`async_rate_limit` returns it."""

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
    Limit how often a coroutine function starts.

    All callers share one bucket, also those that call it through different objects or event loops. A plain function
    becomes a coroutine function.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may start at once; by default the calls of one second, at least 1.
        block: Whether a call over the limit waits. Otherwise it raises.
        clock: See :class:`AsyncTokenBucket`.

    Returns:
        The decorator.

    Raises:
        ConfigError: An argument is not a number or too small, or the decorated object cannot be called.
        RateLimitExceeded: From a call over the limit, with ``block=False``. Its ``retry_after`` is in seconds.
    """
    limit = limit_of(tokens_per_second, capacity)

    def decorate(func: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
        key = name_of(func)
        bucket = AsyncTokenBucket(limit.capacity, limit.fill_rate, clock=clock, name=key)

        @functools.wraps(func)
        async def limited(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - AsyncRateLimit has the types
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
    """Return the limit of a decorator. Its capacity is at least 1, because a smaller bucket could grant no call."""
    check_number("tokens_per_second", tokens_per_second, "a number above 0, as in @rate_limit(10)", above=True)
    if capacity is None:
        return Limit(max(1.0, tokens_per_second), tokens_per_second)
    return Limit(check_number("capacity", capacity, "a number of calls, 1 or more", minimum=1), tokens_per_second)


def name_of(func: Callable[..., object]) -> str:
    """
    Return the name of *func* in errors.

    Raises:
        ConfigError: *func* cannot be called, or is an asynchronous generator, of which only the start could be limited.
    """
    if not callable(func):
        raise ConfigError("func", func, "a function: put the decorator under @classmethod or @property")
    if inspect.isasyncgenfunction(func):
        raise ConfigError("func", func, "a function or coroutine function, not an asynchronous generator")
    return getattr(func, "__qualname__", None) or repr(func)
