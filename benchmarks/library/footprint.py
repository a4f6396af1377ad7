"""
Rows of the memory of a bucket: just used, and idle for longer than it takes to fill.

In memory, each library runs in a process of its own and keeps one limit a customer as its documentation says. Its
memory is counted by tracemalloc. For a compiled library, which tracemalloc does not see, the process's unique memory
(USS) counts.
"""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil

from benchmarks.library import memory_limiters, v0_1_0
from benchmarks.library.implementation import Implementation, Size, prepared
from benchmarks.library.redis_limiters import Database, for_threads
from benchmarks.library.results import OURS, Entry, Row
from benchmarks.library.rows import UNAVAILABLE
from benchmarks.server import redis_server
from bucketflow import TokenBucket

#: An empty bucket is full again after two seconds.
SIZE = Size(20, 10)
#: Seconds after which every bucket counts as idle: more than twice the time to fill, which no expiry that depends on
#: the limit exceeds.
IDLE = 5.0
BUCKETS = 10_000

Use = Callable[[str], Any]


def _objects(make: Callable[[], Any]) -> Use:
    """Return a function that makes, uses and keeps a bucket for each key."""
    buckets: dict[str, Any] = {}

    def use(key: str) -> None:
        buckets[key] = bucket = make()
        bucket.consume()

    return use


def _token_bucket() -> Use:
    from token_bucket import Limiter, MemoryStorage  # noqa: PLC0415 - a peer may be absent

    return Limiter(SIZE.fill_rate, SIZE.capacity, MemoryStorage()).consume


def _limits() -> Use:
    one = memory_limiters.named("limits").make(SIZE, "")
    return lambda key: one.strategy.hit(one.item, key)


def _pyrate() -> Use:
    from pyrate_limiter import BucketFactory, Limiter, MonotonicClock, RateItem, StateBucket, TokenBucket  # noqa: PLC0415

    clock, buckets = MonotonicClock(), {}

    class Customers(BucketFactory):
        def wrap_item(self, name: str, weight: int = 1) -> Any:  # noqa: ANN401
            return RateItem(name, clock.now(), weight=weight)

        def get(self, item: Any) -> Any:  # noqa: ANN401
            if item.name not in buckets:
                buckets[item.name] = StateBucket([memory_limiters.pyrate_rate(SIZE)], algorithm=TokenBucket())
            return buckets[item.name]

    return Limiter(Customers()).try_acquire


def _throttled() -> Use:
    from throttled import MemoryStore, Throttled  # noqa: PLC0415

    # The default of 1024 would evict buckets that are in use.
    store = MemoryStore(options={"MAX_SIZE": 2 * BUCKETS})
    options = memory_limiters.throttled_options(SIZE, "")
    return Throttled(using=options["using"], quota=options["quota"], store=store).limit


def _steindamm() -> Use:
    from steindamm import SyncTokenBucket  # noqa: PLC0415

    def use(key: str) -> None:
        with SyncTokenBucket.create(**memory_limiters.steindamm_options(SIZE, key)):
            pass

    return use


#: How each library uses a bucket for each key.
USES: dict[str, Callable[[], Use]] = {
    OURS: lambda: _objects(lambda: TokenBucket(*SIZE)),
    "bucketflow 0.1.0": lambda: _objects(partial(v0_1_0.load("token_bucket")[0].TokenBucket, *SIZE)),
    "limits": _limits,
    "pyrate-limiter": _pyrate,
    "rust-py-rate-limit": lambda: memory_limiters.RUST.make(SIZE, "").allow,
    "steindamm": _steindamm,
    "throttled-py": _throttled,
    "token-bucket": _token_bucket,
}


def rows() -> list[Row]:
    """Measure buckets in memory and in Redis."""
    return [in_process(list(USES)), in_redis()]


def in_process(names: Sequence[str], buckets: int = BUCKETS, idle: float = IDLE) -> Row:
    """Measure each library in a process of its own; two at once, since no time is measured."""
    entries, left_out = [], {}
    with get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        pending = {name: pool.apply_async(bytes_a_bucket, [name, buckets, idle]) for name in names}
        for name, future in pending.items():
            try:
                live, after = future.get(60)
            except UNAVAILABLE as error:
                left_out[name] = str(error)
                continue
            print(f"in memory: {name} {live:.0f} bytes, {after:.0f} when idle")
            entries.append(Entry(name, "ours" if name == OURS else "peer", {"live": live, "idle": after}))
    return Row("footprint-memory", "in memory", entries, left_out)


def bytes_a_bucket(name: str, buckets: int, idle: float) -> tuple[float, float]:
    """Return the bytes per bucket of *buckets* that were just used, and *idle* seconds later."""
    use = USES[name]()
    for number in range(100):
        use(f"warm-{number}")
    used = _unique if name == memory_limiters.RUST.name else _traced
    tracemalloc.start()
    keys = [f"customer-{number}" for number in range(buckets)]
    before = used()
    for key in keys:
        use(key)
    live = used() - before
    time.sleep(idle)
    use("warm-0")  # some libraries expire buckets only during a call
    return live / buckets, max(0, used() - before) / buckets


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _unique() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def in_redis(idle: float = IDLE) -> Row:
    """Measure the keys of a bucket by ``MEMORY USAGE``."""
    with redis_server() as port:
        implementations = for_threads(Database(port))
        databases = [Database(port, db) for db in range(len(implementations))]
        used = {}
        left_out = {}
        for at, database in enumerate(databases):
            one = for_threads(database)[at]
            if one.role == "baseline":
                continue
            try:
                used[one.name] = one, database, _keys_of(one, database)
            except UNAVAILABLE as error:
                left_out[one.name] = str(error)
        time.sleep(idle)
        entries = []
        for name, (one, database, (live, expires)) in used.items():
            values = {"live": live, "idle": _bytes_in(database), "expires": expires}
            entries.append(Entry(name, one.role, values))
            print(f"in Redis: {name} {live:.0f} bytes, {values['idle']:.0f} when idle, expires after {expires} s")
    return Row("footprint-redis", "in Redis", entries, left_out)


def _keys_of(one: Implementation, database: Database) -> tuple[float, float | None]:
    """Return the bytes of the keys of a half-empty bucket, and the seconds until the last key expires."""
    it, loop = prepared(one, SIZE)
    loop(it, SIZE.capacity // 2)
    expiries = [database.client.pttl(key) for key in database.client.scan_iter()]
    return _bytes_in(database), None if -1 in expiries else max(expiries, default=0) / 1000


def _bytes_in(database: Database) -> float:
    return float(sum(database.client.memory_usage(key, samples=0) or 0 for key in database.client.scan_iter()))
