"""The limiters of one process, each as its documentation says, with the algorithm nearest to a token bucket."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, TokenBucket
from comparison import former
from comparison.contestant import Contestant, Size
from comparison.floors import MinimalAsyncBucket, MinimalBucket, MinimalPath

#: With ``blocking=False`` it refuses whoever finds another thread at work, whatever tokens there are.
PYRATE_SYNC = "it.try_acquire('key')"
PYRATE_ASYNC = "await it.try_acquire_async('key')"
STEINDAMM_SYNC = "it.enter() is None"
STEINDAMM_ASYNC = "(await it.enter()) is None"


def _hierarchy(kind: Any, size: Size, keys: Sequence[str]) -> Any:  # noqa: ANN401
    bucket = None
    for _ in keys:
        bucket = kind(*size, parent=bucket)
    return bucket


def _limits(size: Size, key: str) -> SimpleNamespace:
    from limits import RateLimitItemPerSecond  # noqa: PLC0415 - a peer may be absent
    from limits.storage import MemoryStorage  # noqa: PLC0415
    from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    strategy = SlidingWindowCounterRateLimiter(MemoryStorage())
    return SimpleNamespace(strategy=strategy, item=RateLimitItemPerSecond(*size.window), key=key)


def _async_limits(size: Size, key: str) -> SimpleNamespace:
    from limits import RateLimitItemPerSecond  # noqa: PLC0415
    from limits.aio.storage import MemoryStorage  # noqa: PLC0415
    from limits.aio.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    strategy = SlidingWindowCounterRateLimiter(MemoryStorage())
    return SimpleNamespace(strategy=strategy, item=RateLimitItemPerSecond(*size.window), key=key)


def _pyrate(size: Size, _key: str) -> Any:  # noqa: ANN401
    from pyrate_limiter import Limiter, StateBucket, TokenBucket  # noqa: PLC0415

    return Limiter(StateBucket([pyrate_rate(size)], algorithm=TokenBucket()))


def pyrate_rate(size: Size) -> Any:  # noqa: ANN401
    """Return *size* as pyrate-limiter says it, in milliseconds."""
    from pyrate_limiter import Rate  # noqa: PLC0415

    tokens, seconds = size.pace
    return Rate(tokens, round(seconds * 1000), burst=size.capacity)


def throttled_options(size: Size, key: str, algorithm: str = "token_bucket") -> dict[str, Any]:
    """Return what ``Throttled`` takes beside its store. One token an hour is the least that it can say."""
    pace = f"{size.fill_rate:g}/s" if size.fill_rate >= 1 else "1/h"
    return {"key": key, "using": algorithm, "quota": f"{pace} burst {size.capacity}"}


def _throttled(size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled import MemoryStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=MemoryStore())


def _async_throttled(size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled.asyncio import MemoryStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=MemoryStore())


def _token_bucket(size: Size, _key: str) -> Any:  # noqa: ANN401
    from token_bucket import Limiter, MemoryStorage  # noqa: PLC0415

    return Limiter(size.fill_rate, size.capacity, MemoryStorage())


def steindamm_options(size: Size, key: str) -> dict[str, Any]:
    """Return what its buckets take. They wait by themselves, for *max_sleep* seconds at most, and raise above that."""
    pace = {"capacity": size.capacity, "refill_amount": 1, "refill_frequency": 1 / size.fill_rate}
    return {"name": key, **pace, "max_sleep": 30}


def _steindamm(size: Size, key: str) -> Any:  # noqa: ANN401
    from steindamm import MaxSleepExceededError, SyncTokenBucket  # noqa: PLC0415

    bucket = SyncTokenBucket.create(**steindamm_options(size, key))

    def ask() -> bool:
        try:
            bucket.__enter__()
        except MaxSleepExceededError:
            return False
        return True

    return SimpleNamespace(enter=bucket.__enter__, ask=ask)


def _async_steindamm(size: Size, key: str) -> Any:  # noqa: ANN401
    from steindamm import AsyncTokenBucket, MaxSleepExceededError  # noqa: PLC0415

    bucket = AsyncTokenBucket.create(**steindamm_options(size, key))

    async def ask() -> bool:
        try:
            await bucket.__aenter__()
        except MaxSleepExceededError:
            return False
        return True

    return SimpleNamespace(enter=bucket.__aenter__, ask=ask)


def _rust(size: Size, _key: str) -> Any:  # noqa: ANN401
    from rust_py_rate_limit import RateLimiter  # noqa: PLC0415

    return RateLimiter(*size.window, algorithm="sliding")


def _former(size: Size, _key: str) -> Any:  # noqa: ANN401
    return former.load("token_bucket")[0].TokenBucket(*size)


def _former_path(size: Size, keys: Sequence[str]) -> Any:  # noqa: ANN401
    return _hierarchy(former.load("hierarchical")[0].HierarchicalTokenBucket, size, keys)


def _async_former(size: Size, _key: str) -> Any:  # noqa: ANN401
    return former.load("async_token_bucket")[0].AsyncTokenBucket(*size)


def _aiolimiter(size: Size, _key: str) -> Any:  # noqa: ANN401
    from aiolimiter import AsyncLimiter  # noqa: PLC0415

    return (
        AsyncLimiter(*size.window)
        if size.fill_rate < 1
        else AsyncLimiter(size.capacity, size.capacity / size.fill_rate)
    )


def _asynciolimiter(size: Size, _key: str) -> Any:  # noqa: ANN401
    from asynciolimiter import LeakyBucketLimiter  # noqa: PLC0415

    return LeakyBucketLimiter(size.fill_rate, capacity=size.capacity)


FLOOR = Contestant(
    "a minimal bucket",
    lambda size, _: MinimalBucket(*size),
    "it.consume()",
    "floor",
    path=lambda size, keys: MinimalPath(*size, len(keys)),
)
OURS = Contestant(
    "BucketFlow",
    lambda size, _: TokenBucket(*size),
    "it.consume()",
    "ours",
    "it.consume(block=True)",
    path=lambda size, keys: _hierarchy(HierarchicalTokenBucket, size, keys),
)
RUST = Contestant("rust-py-rate-limit", _rust, "it.allow('key')")

SYNC = [
    FLOOR,
    OURS,
    Contestant("bucketflow 0.1.0", _former, "it.consume()", wait="it.consume(block=True)", path=_former_path),
    Contestant("limits", _limits, "it.strategy.hit(it.item, it.key)"),
    Contestant(
        "pyrate-limiter", _pyrate, PYRATE_SYNC, wait=PYRATE_SYNC, refuse="it.try_acquire('key', blocking=False)"
    ),
    RUST,
    Contestant("steindamm", _steindamm, STEINDAMM_SYNC, wait=STEINDAMM_SYNC, refuse="it.ask()"),
    Contestant("throttled-py", _throttled, "not it.limit().limited"),
    Contestant("token-bucket", _token_bucket, "it.consume('key')"),
]

ASYNC_FLOOR = Contestant(
    "a minimal coroutine bucket", lambda size, _: MinimalAsyncBucket(*size), "await it.consume()", "floor"
)
ASYNC_OURS = Contestant(
    "BucketFlow", lambda size, _: AsyncTokenBucket(*size), "await it.consume()", "ours", "await it.consume(block=True)"
)

ASYNC = [
    ASYNC_FLOOR,
    ASYNC_OURS,
    Contestant(
        "aiolimiter",
        _aiolimiter,
        "(await it.acquire()) is None",
        wait="(await it.acquire()) is None",
        refuse="it.has_capacity() and (await it.acquire()) is None",
    ),
    Contestant(
        "asynciolimiter", _asynciolimiter, "(await it.wait()) is None", wait="(await it.wait()) is None", refuse=""
    ),
    Contestant("bucketflow 0.1.0", _async_former, "await it.consume()", wait="await it.consume(block=True)"),
    Contestant("limits", _async_limits, "await it.strategy.hit(it.item, it.key)"),
    Contestant(
        "pyrate-limiter",
        _pyrate,
        PYRATE_ASYNC,
        wait=PYRATE_ASYNC,
        refuse="await it.try_acquire_async('key', blocking=False)",
    ),
    Contestant("steindamm", _async_steindamm, STEINDAMM_ASYNC, wait=STEINDAMM_ASYNC, refuse="await it.ask()"),
    Contestant("throttled-py", _async_throttled, "not (await it.limit()).limited"),
]

#: Those that can wait. throttled-py's token bucket counts whole seconds; its documentation waits with GCRA.
WAITING = [
    *(one for one in SYNC if one.wait),
    Contestant(
        "throttled-py (GCRA)",
        lambda size, key: _throttled(size, key, "gcra"),
        "",
        wait="not it.limit(timeout=30).limited",
    ),
]
ASYNC_WAITING = [
    *(one for one in ASYNC if one.wait),
    Contestant(
        "throttled-py (GCRA)",
        lambda size, key: _async_throttled(size, key, "gcra"),
        "",
        wait="not (await it.limit(timeout=30)).limited",
    ),
]


def named(name: str) -> Contestant:
    """Return the one of :data:`SYNC` with *name*."""
    return next(one for one in SYNC if one.name == name)
