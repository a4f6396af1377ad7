"""
What a bucket costs in memory: just used, and idle again for longer than it needs to fill.

In memory each library keeps its buckets in a process of its own, in the way its documentation does for one limit a
customer. Python's own memory is counted by tracemalloc; of a compiled library the process's is.
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
from workers import redis_server

from bucketflow import TokenBucket
from comparison import former, in_memory
from comparison.contestant import Contestant, Size, prepared
from comparison.redis_limiters import Place, threaded
from comparison.results import OURS, Entry, Row
from comparison.rows import ABSENT

#: Full again two seconds after the last token was taken.
SIZE = Size(20, 10)
#: Seconds after which all of them are idle: no expiry that depends on the limit is above twice the time to fill.
IDLE = 5.0
BUCKETS = 10_000

Use = Callable[[str], Any]


def _objects(make: Callable[[], Any]) -> Use:
    """Return what uses a bucket of its own for each key, and keeps it."""
    buckets: dict[str, Any] = {}

    def use(key: str) -> None:
        buckets[key] = bucket = make()
        bucket.consume()

    return use


def _token_bucket() -> Use:
    from token_bucket import Limiter, MemoryStorage  # noqa: PLC0415 - a peer may be absent

    return Limiter(SIZE.fill_rate, SIZE.capacity, MemoryStorage()).consume


def _limits() -> Use:
    one = in_memory.named("limits").make(SIZE, "")
    return lambda key: one.strategy.hit(one.item, key)


def _pyrate() -> Use:
    from pyrate_limiter import BucketFactory, Limiter, MonotonicClock, RateItem, StateBucket, TokenBucket  # noqa: PLC0415

    clock, buckets = MonotonicClock(), {}

    class Customers(BucketFactory):
        def wrap_item(self, name: str, weight: int = 1) -> Any:  # noqa: ANN401
            return RateItem(name, clock.now(), weight=weight)

        def get(self, item: Any) -> Any:  # noqa: ANN401
            if item.name not in buckets:
                buckets[item.name] = StateBucket([in_memory.pyrate_rate(SIZE)], algorithm=TokenBucket())
            return buckets[item.name]

    return Limiter(Customers()).try_acquire


def _throttled() -> Use:
    from throttled import MemoryStore, Throttled  # noqa: PLC0415

    # By default it keeps 1024 limits and forgets the others, those in use too.
    store = MemoryStore(options={"MAX_SIZE": 2 * BUCKETS})
    options = in_memory.throttled_options(SIZE, "")
    return Throttled(using=options["using"], quota=options["quota"], store=store).limit


def _steindamm() -> Use:
    from steindamm import SyncTokenBucket  # noqa: PLC0415

    def use(key: str) -> None:
        with SyncTokenBucket.create(**in_memory.steindamm_options(SIZE, key)):
            pass

    return use


#: How each keeps a bucket for every key.
KEEPING: dict[str, Callable[[], Use]] = {
    OURS: lambda: _objects(lambda: TokenBucket(*SIZE)),
    "bucketflow 0.1.0": lambda: _objects(partial(former.load("token_bucket")[0].TokenBucket, *SIZE)),
    "limits": _limits,
    "pyrate-limiter": _pyrate,
    "rust-py-rate-limit": lambda: in_memory.RUST.make(SIZE, "").allow,
    "steindamm": _steindamm,
    "throttled-py": _throttled,
    "token-bucket": _token_bucket,
}


def rows() -> list[Row]:
    """Measure buckets in memory and in Redis."""
    return [in_process(list(KEEPING)), in_redis()]


def in_process(names: Sequence[str], buckets: int = BUCKETS, idle: float = IDLE) -> Row:
    """Measure each in a process of its own, two at once: what is measured is no time."""
    entries, left_out = [], {}
    with get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        measuring = {name: pool.apply_async(bytes_a_bucket, [name, buckets, idle]) for name in names}
        for name, future in measuring.items():
            try:
                live, after = future.get(60)
            except ABSENT as error:
                left_out[name] = str(error)
                continue
            print(f"in memory: {name} {live:.0f} bytes, {after:.0f} when idle")
            entries.append(Entry(name, "ours" if name == OURS else "peer", {"live": live, "idle": after}))
    return Row("footprint-memory", "in memory", entries, left_out)


def bytes_a_bucket(name: str, buckets: int, idle: float) -> tuple[float, float]:
    """Return the bytes that each of *buckets* costs when it has just been used, and *idle* seconds later."""
    use = KEEPING[name]()
    for number in range(100):
        use(f"warm-{number}")
    held = _resident if name == in_memory.RUST.name else _traced
    tracemalloc.start()
    keys = [f"customer-{number}" for number in range(buckets)]
    before = held()
    for key in keys:
        use(key)
    live = held() - before
    time.sleep(idle)
    use("warm-0")  # some tidy up when they are called
    return live / buckets, max(0, held() - before) / buckets


def _traced() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def _resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_full_info().uss)


def in_redis(idle: float = IDLE) -> Row:
    """Measure the keys of a bucket, by the server's own account."""
    with redis_server() as port:
        contestants = threaded(Place(port))
        places = [Place(port, db) for db in range(len(contestants))]
        used = {}
        left_out = {}
        for at, place in enumerate(places):
            one = threaded(place)[at]
            if one.role == "floor":
                continue
            try:
                used[one.name] = one, place, _keys_of(one, place)
            except ABSENT as error:
                left_out[one.name] = str(error)
        time.sleep(idle)
        entries = []
        for name, (one, place, (live, expires)) in used.items():
            values = {"live": live, "idle": _bytes_in(place), "expires": expires}
            entries.append(Entry(name, one.role, values))
            print(f"in Redis: {name} {live:.0f} bytes, {values['idle']:.0f} when idle, expires after {expires} s")
    return Row("footprint-redis", "in Redis", entries, left_out)


def _keys_of(one: Contestant, place: Place) -> tuple[float, float | None]:
    """Return the bytes that the keys of a half-empty bucket take, and the seconds until the last is gone."""
    it, loop = prepared(one, SIZE)
    loop(it, SIZE.capacity // 2)
    expiries = [place.client.pttl(key) for key in place.client.scan_iter()]
    return _bytes_in(place), None if -1 in expiries else max(expiries, default=0) / 1000


def _bytes_in(place: Place) -> float:
    return float(sum(place.client.memory_usage(key, samples=0) or 0 for key in place.client.scan_iter()))
