"""
The limiters on Redis, used as their documentation says, with the algorithm nearest to a token bucket.

A limiter that takes a client gets the client of its :class:`Database`. One that makes its own client gets the URL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from types import SimpleNamespace
from typing import Any

import redis
import redis.asyncio

from benchmarks.library import v0_1_0
from benchmarks.library.baselines import AsyncPing, EmptyScript, Ping, PolledPing
from benchmarks.library.implementation import Implementation, Size
from benchmarks.library.memory_limiters import (
    PYRATE_ASYNC,
    PYRATE_SYNC,
    STEINDAMM_ASYNC,
    STEINDAMM_SYNC,
    pyrate_rate,
    steindamm_options,
    throttled_options,
)
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket

BASELINE = "a PING, packed beforehand"
POLLED_BASELINE = f"{BASELINE}, polled"
LEASED = "BucketFlow, lease=100"
HOST = "127.0.0.1"
_EMPTY = "return 1"


@dataclass(frozen=True)
class Database:
    """
    A database of a server on this machine.

    Attributes:
        port: The port of the server.
        db: The number of the database.
    """

    port: int
    db: int = 0

    @property
    def url(self) -> str:
        """The URL."""
        return f"redis://{HOST}:{self.port}/{self.db}"

    @cached_property
    def client(self) -> redis.Redis:
        """The client that all threads share, with redis-py's defaults."""
        return redis.Redis(host=HOST, port=self.port, db=self.db)

    @cached_property
    def async_client(self) -> redis.asyncio.Redis:
        """The client that all tasks share. Its connections belong to the event loop that opens them."""
        return redis.asyncio.Redis(host=HOST, port=self.port, db=self.db)

    @cached_property
    def event_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of all tasks."""
        return asyncio.new_event_loop()

    def close(self) -> None:
        """Close the clients and the event loop."""
        self.event_loop.run_until_complete(self.async_client.aclose())
        self.event_loop.close()
        self.client.close()

    def sha(self) -> str:
        """Load a script that does nothing; return its SHA."""
        return str(self.client.script_load(_EMPTY))


def _ours(kind: Any, client: Any, size: Size, keys: Sequence[str], **options: Any) -> Any:  # noqa: ANN401
    bucket = None
    for key in keys:
        bucket = kind(client, key, *size, parent=bucket, **options)
    return bucket


@cache
def _limits_strategy(database: Database) -> Any:  # noqa: ANN401
    from limits.storage import RedisStorage  # noqa: PLC0415 - a peer may be absent
    from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    return SlidingWindowCounterRateLimiter(RedisStorage(database.url))


@cache
def _async_limits_strategy(database: Database) -> Any:  # noqa: ANN401
    from limits.aio.storage import RedisStorage  # noqa: PLC0415
    from limits.aio.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    return SlidingWindowCounterRateLimiter(RedisStorage(f"async+{database.url}", implementation="redispy"))


def _limits(strategy: Any, size: Size, key: str) -> SimpleNamespace:  # noqa: ANN401
    from limits import RateLimitItemPerSecond  # noqa: PLC0415

    return SimpleNamespace(strategy=strategy, item=RateLimitItemPerSecond(*size.window), key=key)


def _pyrate(client: Any, size: Size, key: str) -> Any:  # noqa: ANN401
    from pyrate_limiter import Limiter, RedisStateStore, StateBucket, TokenBucket  # noqa: PLC0415

    store = RedisStateStore(client, key)
    return Limiter(StateBucket([pyrate_rate(size)], algorithm=TokenBucket(), store=store))


def _steindamm(database: Database, size: Size, key: str) -> SimpleNamespace:
    from steindamm import SyncTokenBucket  # noqa: PLC0415

    bucket = SyncTokenBucket.create(**steindamm_options(size, key), connection=database.client)
    return SimpleNamespace(enter=bucket.__enter__)


def _async_steindamm(database: Database, size: Size, key: str) -> SimpleNamespace:
    from steindamm import AsyncTokenBucket  # noqa: PLC0415

    bucket = AsyncTokenBucket.create(**steindamm_options(size, key), connection=database.async_client)
    return SimpleNamespace(enter=bucket.__aenter__)


def _throttled(database: Database, size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled import RedisStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=RedisStore(server=database.url))


def _async_throttled(database: Database, size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled.asyncio import RedisStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=RedisStore(server=database.url))


def _dramatiq(database: Database, size: Size, key: str) -> SimpleNamespace:
    from dramatiq.rate_limits import BucketRateLimiter  # noqa: PLC0415
    from dramatiq.rate_limits.backends import RedisBackend  # noqa: PLC0415

    tokens, seconds = size.window
    limiter = BucketRateLimiter(RedisBackend(client=database.client), key, limit=tokens, bucket=seconds * 1000)

    def take() -> bool:
        with limiter.acquire(raise_on_failure=False) as acquired:
            return bool(acquired)

    return SimpleNamespace(take=take)


def _heimdall(database: Database, size: Size, key: str) -> SimpleNamespace:
    from celery import Celery  # noqa: PLC0415
    from celery_heimdall import HeimdallTask, RateLimit  # noqa: PLC0415
    from celery_heimdall.task import rate_limited_countdown  # noqa: PLC0415 - its tasks call it before they run

    class Task(HeimdallTask):
        name = key
        heimdall = {"rate_limit": RateLimit(size.window)}  # noqa: RUF012

        def setup_redis(self) -> redis.Redis:
            return database.client

    task = Celery(set_as_current=False).register_task(Task())
    return SimpleNamespace(countdown=lambda: rate_limited_countdown(task, key, (), {}))


def _v0_1_0(database: Database, size: Size, key: str) -> Any:  # noqa: ANN401
    return v0_1_0.load("distributed")[0].RedisTokenBucket(database.client, key, *size)


def _ping(name: str, kind: Any, client: Any, call: str) -> Implementation:  # noqa: ANN401
    return Implementation(name, lambda _, __: kind(client), call, "baseline", path=lambda _, __: kind(client))


def _empty_script(database: Database, client: Any, call: str) -> Implementation:  # noqa: ANN401
    return Implementation(
        "redis-py's evalsha of an empty script",
        lambda _, key: EmptyScript(client, database.sha(), (key,)),
        call,
        "baseline",
        path=lambda _, keys: EmptyScript(client, database.sha(), keys),
    )


def for_threads(database: Database) -> list[Implementation]:
    """Return the implementations for threads."""
    client = database.client
    return [
        _ping(BASELINE, Ping, client, "it.call()"),
        _ping(POLLED_BASELINE, PolledPing, client, "it.call()"),
        _empty_script(database, client, "it.call()"),
        Implementation(
            "BucketFlow",
            lambda size, key: RedisTokenBucket(client, key, *size),
            "it.consume()",
            "ours",
            "it.consume(block=True)",
            path=lambda size, keys: _ours(RedisTokenBucket, client, size, keys),
        ),
        Implementation(
            "bucketflow 0.1.0",
            lambda size, key: _v0_1_0(database, size, key),
            "it.consume()",
            wait="it.consume(block=True)",
        ),
        Implementation("celery-heimdall", lambda size, key: _heimdall(database, size, key), "it.countdown() == 0"),
        Implementation("dramatiq", lambda size, key: _dramatiq(database, size, key), "it.take()"),
        Implementation(
            "limits",
            lambda size, key: _limits(_limits_strategy(database), size, key),
            "it.strategy.hit(it.item, it.key)",
        ),
        Implementation("pyrate-limiter", lambda size, key: _pyrate(client, size, key), PYRATE_SYNC, wait=PYRATE_SYNC),
        Implementation(
            "steindamm", lambda size, key: _steindamm(database, size, key), STEINDAMM_SYNC, wait=STEINDAMM_SYNC
        ),
        Implementation("throttled-py", lambda size, key: _throttled(database, size, key), "not it.limit().limited"),
    ]


def for_tasks(database: Database) -> list[Implementation]:
    """Return the implementations for asyncio tasks."""
    client = database.async_client
    return [
        _ping(BASELINE, AsyncPing, client, "await it.call()"),
        _empty_script(database, client, "await it.call()"),
        Implementation(
            "BucketFlow",
            lambda size, key: AsyncRedisTokenBucket(client, key, *size),
            "await it.consume()",
            "ours",
            "await it.consume(block=True)",
            path=lambda size, keys: _ours(AsyncRedisTokenBucket, client, size, keys),
        ),
        Implementation(
            "limits",
            lambda size, key: _limits(_async_limits_strategy(database), size, key),
            "await it.strategy.hit(it.item, it.key)",
        ),
        Implementation("pyrate-limiter", lambda size, key: _pyrate(client, size, key), PYRATE_ASYNC, wait=PYRATE_ASYNC),
        Implementation(
            "steindamm", lambda size, key: _async_steindamm(database, size, key), STEINDAMM_ASYNC, wait=STEINDAMM_ASYNC
        ),
        Implementation(
            "throttled-py", lambda size, key: _async_throttled(database, size, key), "not (await it.limit()).limited"
        ),
    ]


def leased_for_threads(database: Database) -> Implementation:
    """Return BucketFlow for threads with a lease of 100 tokens."""
    kind, client = RedisTokenBucket, database.client
    return Implementation(LEASED, lambda size, key: kind(client, key, *size, lease=100), "it.consume()", "ours")


def leased_for_tasks(database: Database) -> Implementation:
    """Return BucketFlow for asyncio tasks with a lease of 100 tokens."""
    kind, client = AsyncRedisTokenBucket, database.async_client
    return Implementation(LEASED, lambda size, key: kind(client, key, *size, lease=100), "await it.consume()", "ours")


def waiting_for_threads(database: Database) -> list[Implementation]:
    """Return those that can make a thread wait. On throttled-py, see ``WAITING`` in ``memory_limiters.py``."""
    gcra = Implementation(
        "throttled-py (GCRA)",
        lambda size, key: _throttled(database, size, key, "gcra"),
        "",
        wait="not it.limit(timeout=30).limited",
    )
    return [*(one for one in for_threads(database) if one.wait), gcra]


def waiting_for_tasks(database: Database) -> list[Implementation]:
    """Return the implementations that can make a task wait."""
    gcra = Implementation(
        "throttled-py (GCRA)",
        lambda size, key: _async_throttled(database, size, key, "gcra"),
        "",
        wait="not (await it.limit(timeout=30)).limited",
    )
    return [*(one for one in for_tasks(database) if one.wait), gcra]
