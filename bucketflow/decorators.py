"""The limiter as a decorator: for functions, methods and coroutine functions."""

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
    Let a function start no more often than the limit allows.

    All its callers share one bucket, whichever object or thread they call it through. A coroutine function is
    handed to :func:`async_rate_limit`, so that its event loop is never blocked.

    Args:
        tokens_per_second: Calls per second.
        capacity: Calls that may come at once; by default one second's worth, at least 1.
        block: Whether a call waits for its turn; otherwise it raises.
        clock: See :class:`bucketflow.TokenBucket`.

    Raises:
        ConfigError: A number is not one, or too small; or what is decorated cannot be called.
        RateLimitExceeded: From the call, with ``block=False``: not now. It carries ``retry_after`` in seconds.
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
