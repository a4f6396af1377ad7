"""
The limiters of a fleet, each as its documentation says, with the algorithm nearest to a token bucket.

Where a limiter takes a client it gets the one of its place; where it makes its own, it is told the address.
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

from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from comparison import former
from comparison.contestant import Contestant, Size
from comparison.floors import AsyncPing, AwakePing, EmptyScript, Ping
from comparison.in_memory import (
    PYRATE_ASYNC,
    PYRATE_SYNC,
    STEINDAMM_ASYNC,
    STEINDAMM_SYNC,
    pyrate_rate,
    steindamm_options,
    throttled_options,
)

FLOOR = "a PING, packed beforehand"
AWAKE_FLOOR = f"{FLOOR}, awaited awake"
LEASED = "BucketFlow, lease=100"
HOST = "127.0.0.1"
_EMPTY = "return 1"


@dataclass(frozen=True)
class Place:
    """
    A database of a server on this machine.

    Attributes:
        port: The server's.
        db: The number of the database.
    """

    port: int
    db: int = 0

    @property
    def url(self) -> str:
        """The address."""
        return f"redis://{HOST}:{self.port}/{self.db}"

    @cached_property
    def client(self) -> redis.Redis:
        """The one client of all threads, with redis-py's defaults."""
        return redis.Redis(host=HOST, port=self.port, db=self.db)

    @cached_property
    def async_client(self) -> redis.asyncio.Redis:
        """The one client of all tasks; its connections belong to the event loop that opens them."""
        return redis.asyncio.Redis(host=HOST, port=self.port, db=self.db)

    @cached_property
    def event_loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of all tasks."""
        return asyncio.new_event_loop()

    def close(self) -> None:
        """Close what has been opened."""
        self.event_loop.run_until_complete(self.async_client.aclose())
        self.event_loop.close()
        self.client.close()

    def sha(self) -> str:
        """Load the script that does nothing."""
        return str(self.client.script_load(_EMPTY))


def _ours(kind: Any, client: Any, size: Size, keys: Sequence[str], **options: Any) -> Any:  # noqa: ANN401
    bucket = None
    for key in keys:
        bucket = kind(client, key, *size, parent=bucket, **options)
    return bucket


@cache
def _limits_strategy(place: Place) -> Any:  # noqa: ANN401
    from limits.storage import RedisStorage  # noqa: PLC0415 - a peer may be absent
    from limits.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    return SlidingWindowCounterRateLimiter(RedisStorage(place.url))


@cache
def _async_limits_strategy(place: Place) -> Any:  # noqa: ANN401
    from limits.aio.storage import RedisStorage  # noqa: PLC0415
    from limits.aio.strategies import SlidingWindowCounterRateLimiter  # noqa: PLC0415

    return SlidingWindowCounterRateLimiter(RedisStorage(f"async+{place.url}", implementation="redispy"))


def _limits(strategy: Any, size: Size, key: str) -> SimpleNamespace:  # noqa: ANN401
    from limits import RateLimitItemPerSecond  # noqa: PLC0415

    return SimpleNamespace(strategy=strategy, item=RateLimitItemPerSecond(*size.window), key=key)


def _pyrate(client: Any, size: Size, key: str) -> Any:  # noqa: ANN401
    from pyrate_limiter import Limiter, RedisStateStore, StateBucket, TokenBucket  # noqa: PLC0415

    store = RedisStateStore(client, key)
    return Limiter(StateBucket([pyrate_rate(size)], algorithm=TokenBucket(), store=store))


def _steindamm(place: Place, size: Size, key: str) -> SimpleNamespace:
    from steindamm import SyncTokenBucket  # noqa: PLC0415

    bucket = SyncTokenBucket.create(**steindamm_options(size, key), connection=place.client)
    return SimpleNamespace(enter=bucket.__enter__)


def _async_steindamm(place: Place, size: Size, key: str) -> SimpleNamespace:
    from steindamm import AsyncTokenBucket  # noqa: PLC0415

    bucket = AsyncTokenBucket.create(**steindamm_options(size, key), connection=place.async_client)
    return SimpleNamespace(enter=bucket.__aenter__)


def _throttled(place: Place, size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled import RedisStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=RedisStore(server=place.url))


def _async_throttled(place: Place, size: Size, key: str, algorithm: str = "token_bucket") -> Any:  # noqa: ANN401
    from throttled.asyncio import RedisStore, Throttled  # noqa: PLC0415

    return Throttled(**throttled_options(size, key, algorithm), store=RedisStore(server=place.url))


def _dramatiq(place: Place, size: Size, key: str) -> SimpleNamespace:
    from dramatiq.rate_limits import BucketRateLimiter  # noqa: PLC0415
    from dramatiq.rate_limits.backends import RedisBackend  # noqa: PLC0415

    tokens, seconds = size.window
    limiter = BucketRateLimiter(RedisBackend(client=place.client), key, limit=tokens, bucket=seconds * 1000)

    def take() -> bool:
        with limiter.acquire(raise_on_failure=False) as acquired:
            return bool(acquired)

    return SimpleNamespace(take=take)


def _heimdall(place: Place, size: Size, key: str) -> SimpleNamespace:
    from celery import Celery  # noqa: PLC0415
    from celery_heimdall import HeimdallTask, RateLimit  # noqa: PLC0415
    from celery_heimdall.task import rate_limited_countdown  # noqa: PLC0415 - what its tasks call before they run

    class Task(HeimdallTask):
        name = key
        heimdall = {"rate_limit": RateLimit(size.window)}  # noqa: RUF012

        def setup_redis(self) -> redis.Redis:
            return place.client

    task = Celery(set_as_current=False).register_task(Task())
    return SimpleNamespace(countdown=lambda: rate_limited_countdown(task, key, (), {}))


def _former(place: Place, size: Size, key: str) -> Any:  # noqa: ANN401
    return former.load("distributed")[0].RedisTokenBucket(place.client, key, *size)


def threaded(place: Place) -> list[Contestant]:
    """Return those that threads can use."""
    client = place.client
    return [
        Contestant(FLOOR, lambda _, __: Ping(client), "it.call()", "floor", path=lambda _, __: Ping(client)),
        Contestant(
            AWAKE_FLOOR, lambda _, __: AwakePing(client), "it.call()", "floor", path=lambda _, __: AwakePing(client)
        ),
        Contestant(
            "redis-py's evalsha of an empty script",
            lambda _, key: EmptyScript(client, place.sha(), (key,)),
            "it.call()",
            "floor",
            path=lambda _, keys: EmptyScript(client, place.sha(), keys),
        ),
        Contestant(
            "BucketFlow",
            lambda size, key: RedisTokenBucket(client, key, *size),
            "it.consume()",
            "ours",
            "it.consume(block=True)",
            path=lambda size, keys: _ours(RedisTokenBucket, client, size, keys),
        ),
        Contestant(
            "bucketflow 0.1.0",
            lambda size, key: _former(place, size, key),
            "it.consume()",
            wait="it.consume(block=True)",
        ),
        Contestant("celery-heimdall", lambda size, key: _heimdall(place, size, key), "it.countdown() == 0"),
        Contestant("dramatiq", lambda size, key: _dramatiq(place, size, key), "it.take()"),
        Contestant(
            "limits", lambda size, key: _limits(_limits_strategy(place), size, key), "it.strategy.hit(it.item, it.key)"
        ),
        Contestant("pyrate-limiter", lambda size, key: _pyrate(client, size, key), PYRATE_SYNC, wait=PYRATE_SYNC),
        Contestant("steindamm", lambda size, key: _steindamm(place, size, key), STEINDAMM_SYNC, wait=STEINDAMM_SYNC),
        Contestant("throttled-py", lambda size, key: _throttled(place, size, key), "not it.limit().limited"),
    ]


def in_tasks(place: Place) -> list[Contestant]:
    """Return those that tasks can use."""
    client = place.async_client
    return [
        Contestant(
            FLOOR, lambda _, __: AsyncPing(client), "await it.call()", "floor", path=lambda _, __: AsyncPing(client)
        ),
        Contestant(
            "redis-py's evalsha of an empty script",
            lambda _, key: EmptyScript(client, place.sha(), (key,)),
            "await it.call()",
            "floor",
            path=lambda _, keys: EmptyScript(client, place.sha(), keys),
        ),
        Contestant(
            "BucketFlow",
            lambda size, key: AsyncRedisTokenBucket(client, key, *size),
            "await it.consume()",
            "ours",
            "await it.consume(block=True)",
            path=lambda size, keys: _ours(AsyncRedisTokenBucket, client, size, keys),
        ),
        Contestant(
            "limits",
            lambda size, key: _limits(_async_limits_strategy(place), size, key),
            "await it.strategy.hit(it.item, it.key)",
        ),
        Contestant("pyrate-limiter", lambda size, key: _pyrate(client, size, key), PYRATE_ASYNC, wait=PYRATE_ASYNC),
        Contestant(
            "steindamm", lambda size, key: _async_steindamm(place, size, key), STEINDAMM_ASYNC, wait=STEINDAMM_ASYNC
        ),
        Contestant(
            "throttled-py", lambda size, key: _async_throttled(place, size, key), "not (await it.limit()).limited"
        ),
    ]


def threaded_lease(place: Place) -> Contestant:
    """Return our bucket with a lease of 100 tokens."""
    kind, client = RedisTokenBucket, place.client
    return Contestant(LEASED, lambda size, key: kind(client, key, *size, lease=100), "it.consume()", "ours")


def lease_in_tasks(place: Place) -> Contestant:
    """Return the same for tasks."""
    kind, client = AsyncRedisTokenBucket, place.async_client
    return Contestant(LEASED, lambda size, key: kind(client, key, *size, lease=100), "await it.consume()", "ours")


def threaded_waiting(place: Place) -> list[Contestant]:
    """Return those that can make a thread wait. See :data:`comparison.in_memory.WAITING` for throttled-py."""
    gcra = Contestant(
        "throttled-py (GCRA)",
        lambda size, key: _throttled(place, size, key, "gcra"),
        "",
        wait="not it.limit(timeout=30).limited",
    )
    return [*(one for one in threaded(place) if one.wait), gcra]


def waiting_in_tasks(place: Place) -> list[Contestant]:
    """Return those that can make a task wait."""
    gcra = Contestant(
        "throttled-py (GCRA)",
        lambda size, key: _async_throttled(place, size, key, "gcra"),
        "",
        wait="not (await it.limit(timeout=30)).limited",
    )
    return [*(one for one in in_tasks(place) if one.wait), gcra]
