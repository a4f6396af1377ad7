"""Token bucket for coroutines, and the decorator for coroutine functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.errors import RateLimitExceeded
from bucketflow.limited_call import decorated, limit_of, name_of
from bucketflow.local.async_waiting import AsyncWaiting
from bucketflow.validation import check_timeout

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["AsyncTokenBucket", "async_rate_limit"]

P = ParamSpec("P")
R = TypeVar("R")


class AsyncTokenBucket(AsyncWaiting):
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
            timeout = check_timeout(timeout, block=block)
        unchecked, refill, _, slot, read, scale, tolerance = self._fast_path
        if tokens is not unchecked:
            refill = self._refill_time(tokens)
            slot = slot if refill else []  # a cost of 0 takes nothing
        # As in TokenBucket.consume, but with a plain pop: asyncio turns a Ctrl-C into a cancellation at an await.
        try:
            full_at = slot.pop()
        except IndexError:
            if self._consume(float(tokens)):
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
        return block and await self._wait_async(float(tokens), timeout)


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
    becomes a coroutine function, and the function of a ``staticmethod`` a static coroutine method.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may start at once; by default the calls of one second, at least 1.
        block: Whether a call over the limit waits. Otherwise it raises.
        clock: See :class:`AsyncTokenBucket`.

    Returns:
        The decorator.

    Raises:
        ConfigError: An argument is not a number or too small, or the decorated object cannot be called, or is a
            generator.
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

    return functools.partial(decorated, decorate)
