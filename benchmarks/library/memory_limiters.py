"""The in-memory limiters, used as their documentation says, with the algorithm nearest to a token bucket."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from benchmarks.library import v0_1_0
from benchmarks.library.baselines import MinimalAsyncBucket, MinimalBucket, MinimalPath
from benchmarks.library.implementation import Implementation, Size
from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, TokenBucket

#: Not with ``blocking=False``: that refuses a call while another thread is in the limiter, even if it has tokens.
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
    """Return the ``Rate`` of *size*, whose intervals are milliseconds."""
    from pyrate_limiter import Rate  # noqa: PLC0415

    tokens, seconds = size.pace
    return Rate(tokens, round(seconds * 1000), burst=size.capacity)


def throttled_options(size: Size, key: str, algorithm: str = "token_bucket") -> dict[str, Any]:
    """Return the arguments of ``Throttled`` except its store. Its lowest rate is one token an hour."""
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
    """Return the arguments of its buckets, which wait for *max_sleep* seconds at most and raise beyond."""
    pace = {"capacity": size.capacity, "refill_amount": 1, "refill_frequency": 1 / size.fill_rate}
    return {"name": key, **pace, "max_sleep": 30}


def _steindamm(size: Size, key: str) -> Any:  # noqa: ANN401
    from steindamm import MaxSleepExceededError, SyncTokenBucket  # noqa: PLC0415

    bucket = SyncTokenBucket.create(**steindamm_options(size, key))

    def try_enter() -> bool:
        try:
            bucket.__enter__()
        except MaxSleepExceededError:
            return False
        return True

    return SimpleNamespace(enter=bucket.__enter__, try_enter=try_enter)


def _async_steindamm(size: Size, key: str) -> Any:  # noqa: ANN401
    from steindamm import AsyncTokenBucket, MaxSleepExceededError  # noqa: PLC0415

    bucket = AsyncTokenBucket.create(**steindamm_options(size, key))

    async def try_enter() -> bool:
        try:
            await bucket.__aenter__()
        except MaxSleepExceededError:
            return False
        return True

    return SimpleNamespace(enter=bucket.__aenter__, try_enter=try_enter)


def _rust(size: Size, _key: str) -> Any:  # noqa: ANN401
    from rust_py_rate_limit import RateLimiter  # noqa: PLC0415

    return RateLimiter(*size.window, algorithm="sliding")


def _v0_1_0(size: Size, _key: str) -> Any:  # noqa: ANN401
    return v0_1_0.load("token_bucket")[0].TokenBucket(*size)


def _v0_1_0_path(size: Size, keys: Sequence[str]) -> Any:  # noqa: ANN401
    return _hierarchy(v0_1_0.load("hierarchical")[0].HierarchicalTokenBucket, size, keys)


def _async_v0_1_0(size: Size, _key: str) -> Any:  # noqa: ANN401
    return v0_1_0.load("async_token_bucket")[0].AsyncTokenBucket(*size)


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


BASELINE = Implementation(
    "a minimal bucket",
    lambda size, _: MinimalBucket(*size),
    "it.consume()",
    "baseline",
    path=lambda size, keys: MinimalPath(*size, len(keys)),
)
OURS = Implementation(
    "BucketFlow",
    lambda size, _: TokenBucket(*size),
    "it.consume()",
    "ours",
    "it.consume(block=True)",
    path=lambda size, keys: _hierarchy(HierarchicalTokenBucket, size, keys),
)
RUST = Implementation("rust-py-rate-limit", _rust, "it.allow('key')")

SYNC = [
    BASELINE,
    OURS,
    Implementation("bucketflow 0.1.0", _v0_1_0, "it.consume()", wait="it.consume(block=True)", path=_v0_1_0_path),
    Implementation("limits", _limits, "it.strategy.hit(it.item, it.key)"),
    Implementation(
        "pyrate-limiter", _pyrate, PYRATE_SYNC, wait=PYRATE_SYNC, refuse="it.try_acquire('key', blocking=False)"
    ),
    RUST,
    Implementation("steindamm", _steindamm, STEINDAMM_SYNC, wait=STEINDAMM_SYNC, refuse="it.try_enter()"),
    Implementation("throttled-py", _throttled, "not it.limit().limited"),
    Implementation("token-bucket", _token_bucket, "it.consume('key')"),
]

ASYNC_BASELINE = Implementation(
    "a minimal coroutine bucket", lambda size, _: MinimalAsyncBucket(*size), "await it.consume()", "baseline"
)
ASYNC_OURS = Implementation(
    "BucketFlow", lambda size, _: AsyncTokenBucket(*size), "await it.consume()", "ours", "await it.consume(block=True)"
)

ASYNC = [
    ASYNC_BASELINE,
    ASYNC_OURS,
    Implementation(
        "aiolimiter",
        _aiolimiter,
        "(await it.acquire()) is None",
        wait="(await it.acquire()) is None",
        refuse="it.has_capacity() and (await it.acquire()) is None",
    ),
    Implementation(
        "asynciolimiter", _asynciolimiter, "(await it.wait()) is None", wait="(await it.wait()) is None", refuse=""
    ),
    Implementation("bucketflow 0.1.0", _async_v0_1_0, "await it.consume()", wait="await it.consume(block=True)"),
    Implementation("limits", _async_limits, "await it.strategy.hit(it.item, it.key)"),
    Implementation(
        "pyrate-limiter",
        _pyrate,
        PYRATE_ASYNC,
        wait=PYRATE_ASYNC,
        refuse="await it.try_acquire_async('key', blocking=False)",
    ),
    Implementation("steindamm", _async_steindamm, STEINDAMM_ASYNC, wait=STEINDAMM_ASYNC, refuse="await it.try_enter()"),
    Implementation("throttled-py", _async_throttled, "not (await it.limit()).limited"),
]

#: The limiters that can wait. throttled-py's token bucket counts whole seconds; its documentation waits with GCRA.
WAITING = [
    *(one for one in SYNC if one.wait),
    Implementation(
        "throttled-py (GCRA)",
        lambda size, key: _throttled(size, key, "gcra"),
        "",
        wait="not it.limit(timeout=30).limited",
    ),
]
ASYNC_WAITING = [
    *(one for one in ASYNC if one.wait),
    Implementation(
        "throttled-py (GCRA)",
        lambda size, key: _async_throttled(size, key, "gcra"),
        "",
        wait="not (await it.limit(timeout=30)).limited",
    ),
]


def named(name: str) -> Implementation:
    """Return the implementation of :data:`SYNC` with *name*."""
    return next(one for one in SYNC if one.name == name)
