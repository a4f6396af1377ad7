"""What a user writes, as type checkers see it: a line with an ignore comment is a mistake that they must find."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery, Task
from typing_extensions import assert_type

from bucketflow import TokenBucket, async_rate_limit, rate_limit
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket, create_redis_bucket_hierarchy
from bucketflow.testing import FakeClock, MemoryRedis
from bucketflow_celery import Limit, OnLimit, OnStoreError, Throttle, throttled_task

app = Celery("shop", broker="redis://localhost")
on_limit: OnLimit = "park"
on_store_error: OnStoreError = "admit"
throttle = Throttle(app, limits={"all": Limit(10, 5)}, on_limit=on_limit, on_store_error=on_store_error)
Throttle(app, on_limit="parked")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Throttle(app, on_store_error="fail")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@throttled_task
def bare(account: str) -> int:
    return len(account)


@throttled_task(app=app, rate="5/s", tenant="account", cost=2, on_limit="hold", acks_late=True)
def sync_order(account: str, order: int, *, urgent: bool = False) -> str:
    return f"{account} {order} {urgent}"


@throttled_task(app=app, bind=True, cost=lambda rows: len(rows) / 2)
def import_rows(self: Any, rows: list[str]) -> int:
    self.update_state(state="STARTED")
    return len(rows)


@throttled_task(rate="5/s")
class Sync(Task):  # type: ignore[misc] # Celery has no types of its own
    def run(self, account: str) -> str:
        return account


assert_type(bare("acme"), int)
assert_type(sync_order("acme", 1, urgent=True), str)
assert_type(import_rows(["a"]), int)
sync_order.delay("acme", 1, urgent=True)
sync_order.apply_async(("acme", 1), countdown=5, queue="orders")
import_rows.delay(["a"])
import_rows.si(["a"])
bare.s().apply_async()
facts = (sync_order.name, sync_order.max_retries, sync_order.app, app.register_task(Sync()))

sync_order("acme")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
sync_order.delay("acme", "1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bare.delay(account=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
import_rows.delay(["a"], 1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@rate_limit(1)
def plain(value: int, *, twice: bool = False) -> str:
    return str(value) * (1 + twice)


@rate_limit(1)
async def delegated(value: int) -> str:
    return str(value)


@async_rate_limit(1)
async def coroutine(value: int) -> str:
    return str(value)


@async_rate_limit(1)
def awaited(value: int) -> str:
    return str(value)


class Client:
    @rate_limit(10)
    def get(self, path: str) -> bytes:
        return path.encode()


async def use() -> None:
    assert_type(plain(1, twice=True), str)
    assert_type(await delegated(1), str)
    assert_type(await coroutine(1), str)
    assert_type(await awaited(1), str)
    assert_type(Client().get("/"), bytes)
    plain("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await coroutine()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


memory = MemoryRedis(FakeClock())
assert_type(RedisTokenBucket(memory, "a", 1, 1).consume(), bool)
assert_type(RedisTokenBucket(redis.Redis(), "a", 1, 1, lease=5).tokens, float)
assert_type(create_redis_bucket_hierarchy(memory, {})["a"], RedisTokenBucket)
AsyncRedisTokenBucket(memory, "a", 1, 1)
TokenBucket(1, 1, clock=FakeClock())
TokenBucket("1", 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
