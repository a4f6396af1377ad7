"""Rate-limiting decorators for functions, methods and coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from bucketflow.async_token_bucket import async_rate_limit
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.errors import ConfigError, RateLimitExceeded
from bucketflow.limited_call import decorated, is_coroutine_function, limit_of, name_of, wraps_async_generator
from bucketflow.local.async_waiting import AsyncWaiting
from bucketflow.token_bucket import TokenBucket

if TYPE_CHECKING:
    from bucketflow.clock import Clock

__all__ = ["RateLimitExceeded", "async_rate_limit", "rate_limit"]

P = ParamSpec("P")
R = TypeVar("R")


def rate_limit(
    tokens_per_second: float,
    capacity: float | None = None,
    block: bool = True,  # noqa: FBT001, FBT002 - the signature of 0.1.0
    *,
    clock: Clock = SYSTEM_CLOCK,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """
    Limit how often a function starts.

    All callers share one bucket, also those that call it through different objects or threads. What returns a
    coroutine never blocks its event loop: a coroutine function, or an object whose ``__call__`` is one, is decorated by
    :func:`async_rate_limit`. If a plain function returns an awaitable, a call over the limit in a running event loop
    returns a coroutine that waits, calls the function and awaits its result.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may start at once; by default the calls of one second, at least 1.
        block: Whether a call over the limit waits. Otherwise it raises.
        clock: See :class:`bucketflow.TokenBucket`.

    Returns:
        The decorator.

    Raises:
        ConfigError: An argument is not a number or too small; or the decorated object cannot be called, or is a
            generator. Also from the first call of a function that returns an asynchronous generator, or an awaitable
            for ``async with``: these could not wait without blocking.
        RateLimitExceeded: From a call over the limit, with ``block=False``. Its ``retry_after`` is in seconds.
    """
    limit = limit_of(tokens_per_second, capacity)

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        key = name_of(func)
        if is_coroutine_function(func):
            return cast("Callable[P, R]", async_rate_limit(tokens_per_second, capacity, block, clock=clock)(func))
        if wraps_async_generator(func):
            raise ConfigError("func", func, _EXPECTED)
        bucket = _CallBucket(limit.capacity, limit.fill_rate, clock=clock, name=key)
        return _waiting(func, bucket) if block else _raising(func, bucket, key)

    return functools.partial(decorated, decorate)


class _CallBucket(TokenBucket, AsyncWaiting):
    """The bucket of one function, whose callers may be threads and coroutines."""

    async def start_later(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 - what *func* returns
        """Wait for a token, call *func* and await its result."""
        await self._wait_async(1, None)
        result = func(*args, **kwargs)
        return await result if inspect.isawaitable(result) else result


def _raising(func: Callable[P, R], bucket: _CallBucket, key: str) -> Callable[P, R]:
    @functools.wraps(func)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        decision = bucket.try_consume()
        if not decision.allowed:
            raise RateLimitExceeded(key, 1, decision.retry_after)
        return func(*args, **kwargs)

    return limited


def _waiting(func: Callable[P, R], bucket: _CallBucket) -> Callable[P, R]:
    is_awaited = False
    checked: type | None = None  # the type of the last result: nearly every result has the same

    @functools.wraps(func)
    def limited(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal is_awaited, checked
        if not bucket.consume():
            if is_awaited and _in_event_loop():
                return cast("R", bucket.start_later(func, args, kwargs))
            bucket.consume(block=True)
        result = func(*args, **kwargs)
        if type(result) is not checked:
            is_awaited = _is_awaited(func, type(result)) or is_awaited
            checked = type(result)
        return result

    return limited


_EXPECTED = "a function whose result is awaited, not used in async for or async with; or async_rate_limit"


def _is_awaited(func: Callable[..., Any], kind: type) -> bool:
    """Return whether results of *kind* are awaited. Raise ConfigError if no coroutine can take the place of one."""
    is_awaited = hasattr(kind, "__await__")
    if kind is AsyncGeneratorType or (is_awaited and (hasattr(kind, "__aiter__") or hasattr(kind, "__aenter__"))):
        raise ConfigError("func", func, _EXPECTED)
    return is_awaited


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
