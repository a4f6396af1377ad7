"""Every public class: its objects survive pickling and copying, or the error says what to do instead."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import threading

import pytest
import redis
import redis.asyncio
from celery import Celery

import bucketflow
import bucketflow_celery
from bucketflow import BucketflowError, NotPicklable
from bucketflow.clock import SystemClock
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.testing import FakeClock, MemoryRedis
from bucketflow_celery.config.levels import Level
from bucketflow_celery.testing import MemoryStore

MODULES = ["bucketflow", "bucketflow.distributed", "bucketflow.testing", "bucketflow.clock", "bucketflow.local.base"]
MODULES += ["bucketflow_celery", "bucketflow_celery.testing", "bucketflow_celery.throttle"]


def throttle():
    return bucketflow_celery.Throttle(Celery("shop", set_as_current=False), store=MemoryStore())


def child():
    return bucketflow.HierarchicalTokenBucket(1, 1, bucketflow.HierarchicalTokenBucket(2, 2))


LIMIT = bucketflow_celery.Limit(1, 1)

#: An object of each public class that lives in one process, and what its error must name.
BOUND = {
    "TokenBucket": (lambda: bucketflow.TokenBucket(1, 1), "bucketflow.distributed.RedisTokenBucket"),
    "AsyncTokenBucket": (lambda: bucketflow.AsyncTokenBucket(1, 1), "bucketflow.distributed.RedisTokenBucket"),
    "HierarchicalTokenBucket": (child, "bucketflow.distributed.RedisTokenBucket"),
    "RedisTokenBucket": (lambda: RedisTokenBucket(redis.Redis(), "a", 1, 1, lease=1), "RedisTokenBucket"),
    "AsyncRedisTokenBucket": (
        lambda: AsyncRedisTokenBucket(redis.asyncio.Redis(), "a", 1, 1),
        "AsyncRedisTokenBucket with the same Redis and key",
    ),
    "Reservation": (lambda: bucketflow.TokenBucket(1, 1).reserve(), "reserve in the process"),
    "Bucket": (lambda: bucketflow.TokenBucket(1, 1), "RedisTokenBucket"),
    "FakeClock": (FakeClock, "in each process"),
    "MemoryRedis": (MemoryRedis, "share a Redis"),
    "MemoryStore": (MemoryStore, "Redis"),
    "Throttle": (throttle, "each process"),
}

#: An object of each public class whose objects are values.
VALUES = {
    "Decision": bucketflow.Decision(allowed=True, retry_after=0.0, binding=None, tokens=(1.0,)),
    "Limit": LIMIT,
    "LevelView": bucketflow_celery.LevelView(Level("all", "all", LIMIT), 1.0, 0.0),
    "TenantBacklog": bucketflow_celery.TenantBacklog("acme", 1, 2.0, 3.0),
    "QueueBacklog": bucketflow_celery.QueueBacklog("emails", 1, 2.0, 3.0, {}, {}),
}

WAYS = {
    **{f"pickle {number}": lambda it, number=number: pickle.dumps(it, number) for number in range(2, 6)},
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "deepcopy of a list": lambda it: copy.deepcopy([it]),
}
each_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def public_classes():
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            kind = getattr(module, name)
            if (
                inspect.isclass(kind)
                and not issubclass(kind, BucketflowError)
                and not getattr(kind, "_is_protocol", False)
            ):
                yield kind


def test_these_tables_cover_every_public_class():
    assert {kind.__name__ for kind in public_classes()} == BOUND.keys() | VALUES.keys() | {SystemClock.__name__}


@each_way
@pytest.mark.parametrize("name", BOUND)
def test_what_lives_in_one_process_says_so_and_names_what_to_do(name, way):
    make, instead = BOUND[name]
    made = make()
    with pytest.raises(NotPicklable, match="lives in one process") as raised:
        way(made)
    assert instead in str(raised.value)
    assert raised.value.kind == type(made).__name__


@pytest.mark.parametrize("value", [*VALUES.values(), bucketflow.Limit(1, 2)], ids=lambda value: type(value).__name__)
def test_a_value_survives(value):
    assert [copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value))] == [value] * 3


def test_the_system_clock_survives():
    clock = pickle.loads(pickle.dumps(copy.deepcopy(SystemClock())))
    assert clock.now() > 0


@bucketflow.rate_limit(1000)
def limited():
    return 1


def test_a_decorated_function_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(copy.deepcopy(limited))) is limited


@bucketflow_celery.throttled_task(app=Celery("pickled", set_as_current=False), rate="5/s", tenant="account")
def task(account):
    return account


def test_the_rules_of_a_task_survive():
    rules = task.bucketflow
    assert copy.deepcopy(rules) == pickle.loads(pickle.dumps(rules)) == rules


def test_a_bucket_is_usable_after_a_refused_copy():
    bucket = bucketflow.TokenBucket(2, 1, clock=FakeClock())
    for way in WAYS.values():
        with pytest.raises(NotPicklable):
            way(bucket)
    assert bucket.consume(2)


def test_a_subclass_of_a_bucket_is_named_itself():
    class Mailbox(bucketflow.TokenBucket):
        lock = threading.Lock()

    with pytest.raises(NotPicklable, match=r"a .*Mailbox lives in one process"):
        copy.copy(Mailbox(1, 1))
