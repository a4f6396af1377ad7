"""Rate-limiting decorators for functions, methods and coroutine functions."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from bucketflow.async_token_bucket import async_rate_limit, limit_of, name_of
from bucketflow.clock import SYSTEM_CLOCK
from bucketflow.errors import RateLimitExceeded
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

    All callers share one bucket, also those that call it through different objects or threads. A coroutine function is
    decorated by :func:`async_rate_limit`, so that its event loop is never blocked.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may start at once; by default the calls of one second, at least 1.
        block: Whether a call over the limit waits. Otherwise it raises.
        clock: See :class:`bucketflow.TokenBucket`.

    Returns:
        The decorator.

    Raises:
        ConfigError: An argument is not a number or too small, or the decorated object cannot be called.
        RateLimitExceeded: From a call over the limit, with ``block=False``. Its ``retry_after`` is in seconds.
    """
    limit = limit_of(tokens_per_second, capacity)

    def decorate(func: Callable[P, R]) -> Callable[P, R]:
        if inspect.iscoroutinefunction(func):
            return cast("Callable[P, R]", async_rate_limit(tokens_per_second, capacity, block, clock=clock)(func))
        key = name_of(func)
        bucket = TokenBucket(limit.capacity, limit.fill_rate, clock=clock, name=key)

        @functools.wraps(func)
        def limited(*args: P.args, **kwargs: P.kwargs) -> R:
            if block:
                bucket.consume(block=True)
            else:
                decision = bucket.try_consume()
                if not decision.allowed:
                    raise RateLimitExceeded(key, 1, decision.retry_after)
            return func(*args, **kwargs)

        return limited

    return decorate
