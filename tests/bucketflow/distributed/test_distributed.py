"""Token buckets in Redis: the promises to all processes that share one."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import threading
import time

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis_shells import TIMEOUT, StoppedRunner

from bucketflow import ConfigError, CostExceedsCapacity, Limit
from bucketflow.distributed import RedisTokenBucket, create_redis_bucket_hierarchy
from bucketflow.limit import SECOND
from bucketflow.testing import FakeClock, worst_excess

SLOW = 0.001  # tokens per second: no refill during a test
METHODS = ("consume", "try_consume", "refund", "wait_time")


# One bucket ---------------------------------------------------------------------------------------------------------


def test_two_objects_with_one_key_are_one_bucket(redis_client):
    one, other = (RedisTokenBucket(redis_client, "shop", 5, SLOW) for _ in range(2))
    assert one.consume(3)
    assert not other.consume(3)
    assert other.consume(2)
    assert one.tokens == pytest.approx(0, abs=0.01)


def test_a_decision_names_the_binding_level_and_the_wait(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 10, 1)
    leaf = RedisTokenBucket(redis_client, "acme", 4, 0.5, parent=root)
    assert leaf.try_consume(4).allowed
    refusal = leaf.try_consume(2)
    assert (refusal.allowed, refusal.binding) == (False, 1)
    assert refusal.retry_after == pytest.approx(4, abs=0.2)
    assert refusal.tokens == (pytest.approx(6, abs=0.3), pytest.approx(0, abs=0.2))
    assert leaf.wait_time(2) == pytest.approx(4, abs=0.2)
    assert leaf.wait_time(0) == 0


def test_limit_key_and_parent_are_attributes(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 5, 2.5)
    leaf = RedisTokenBucket(redis_client, "acme", 3, 1, parent=root)
    assert (root.capacity, root.fill_rate, root.key, root.parent) == (5, 2.5, "shop", None)
    assert (leaf.limit.capacity, leaf.limit.fill_rate, leaf.parent) == (3, 1, root)


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ({"capacity": 0}, "capacity"),
        ({"capacity": "5"}, "capacity"),
        ({"fill_rate": -1}, "fill_rate"),
        ({"initial_tokens": 6}, "initial_tokens"),
        ({"initial_tokens": -1}, "initial_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"parent": "shop"}, "parent"),
        ({"redis_client": "redis://localhost"}, "redis_client"),
        ({"redis_client": []}, "redis_client"),
        ({"redis_client": redis.asyncio.Redis()}, "redis_client"),
    ],
)
def test_an_invalid_argument_raises_config_error(options, entry):
    arguments = {"redis_client": redis.Redis(port=1), "key": "shop", "capacity": 5, "fill_rate": 1}
    with pytest.raises(ConfigError) as error:
        RedisTokenBucket(**(arguments | options))
    assert error.value.entry == entry


def test_a_parent_with_another_client_or_the_same_key_is_rejected(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 5, 1)
    with pytest.raises(ConfigError, match="redis_client"):
        RedisTokenBucket(redis.Redis(), "acme", 5, 1, parent=root)
    child = RedisTokenBucket(redis_client, "acme", 5, 1, parent=root)
    with pytest.raises(ConfigError, match="key is 'acme'"):
        RedisTokenBucket(redis_client, "acme", 5, 1, parent=child)


def test_an_invalid_request_never_reaches_redis():
    nowhere = redis.Redis(port=1)
    leaf = RedisTokenBucket(nowhere, "acme", 9, 1, parent=RedisTokenBucket(nowhere, "shop", 5, 1))
    with pytest.raises(CostExceedsCapacity, match=r"^shop: 6 token"):
        leaf.consume(6)
    for wrong in (-1, "1", None, float("nan"), True):
        with pytest.raises(ConfigError, match=r"^tokens is"):
            leaf.consume(wrong)
    with pytest.raises(ConfigError, match=r"^timeout is"):
        leaf.consume(timeout=1)


def test_a_refund_applies_to_every_level_and_stops_at_the_capacity(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 10, SLOW)
    leaf = RedisTokenBucket(redis_client, "acme", 4, SLOW, parent=root)
    leaf.consume(3)
    leaf.refund(1)
    assert (root.tokens, leaf.tokens) == (pytest.approx(8, abs=0.01), pytest.approx(2, abs=0.01))
    leaf.refund(4)
    assert (root.tokens, leaf.tokens) == (10, 4)


# Initial state and expiry -------------------------------------------------------------------------------------------


def test_initial_tokens_apply_once_and_only_to_a_bucket_that_redis_does_not_have(redis_client):
    first = RedisTokenBucket(redis_client, "shop", 10, SLOW, initial_tokens=2)
    assert not first.consume(3)  # a refusal stores the initial state, too
    assert first.tokens == pytest.approx(2, abs=0.01)
    assert RedisTokenBucket(redis_client, "shop", 10, SLOW, initial_tokens=0).consume(2)
    redis_client.flushall()
    assert first.tokens == 10  # initial tokens are not applied again


def test_a_childs_call_applies_its_parents_initial_tokens(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 10, SLOW, initial_tokens=1)
    leaf = RedisTokenBucket(redis_client, "acme", 10, SLOW, parent=root)
    decision = leaf.try_consume(2)
    assert (decision.allowed, decision.binding) == (False, 0)
    assert root.tokens == pytest.approx(1, abs=0.01)
    assert leaf.tokens == 10


EPOCH = 1_704_067_200_000  # Unix time in ms of the instant 0 in Redis


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.floats(0.1, 1e5), st.floats(0.1, 1e5)), min_size=1, max_size=3),
    st.floats(0, 1),
    st.sampled_from([None, 1, 20]),
    st.lists(
        st.tuples(st.sampled_from(["consume", "try_consume", "refund", "wait_time"]), st.floats(0, 1)), max_size=8
    ),
)
def test_every_key_expires_within_a_tenth_of_a_second_after_its_bucket_is_full(redis_client, path, start, lease, uses):
    redis_client.flushall()
    bucket = None
    for level, (capacity, fill_rate) in enumerate(path):
        bucket = RedisTokenBucket(
            redis_client, f"level{level}", capacity, fill_rate, start * capacity, parent=bucket, lease=lease
        )
    slowest = 0.0
    for method, share in uses:
        started = time.monotonic()
        getattr(bucket, method)(share * min(capacity for capacity, _ in path))
        slowest = max(slowest, time.monotonic() - started)
        for key in redis_client.scan_iter():
            value, expires_at = redis_client.get(key), redis_client.pexpiretime(key)
            if value is not None and expires_at > 0:  # otherwise it expired between the two calls
                full_at = struct.unpack_from("<d", value)[0] / 1000 + EPOCH
                # Redis counts a time to live from SET on, which a busy machine delays after the script read the clock.
                assert full_at <= expires_at <= full_at + 101 + slowest * 1000
    bucket.close()


def test_a_full_bucket_leaves_no_key(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 5, SLOW)
    assert bucket.tokens == 5
    assert bucket.consume(0)
    assert redis_client.keys() == []
    bucket.consume(2)
    assert redis_client.keys() == [b"bucketflow:{shop}"]
    bucket.refund(2)
    assert redis_client.keys() == []
    RedisTokenBucket(redis_client, "fast", 1, 1e5).consume()
    time.sleep(0.11)
    assert redis_client.keys() == []


# Atomic paths, limits across processes ------------------------------------------------------------------------------


def test_a_refusal_spends_nothing_at_any_level(redis_client):
    tree = create_redis_bucket_hierarchy(
        redis_client,
        {
            "name": "all",
            "capacity": 100,
            "fill_rate": SLOW,
            "children": [
                {"name": "acme", "capacity": 2, "fill_rate": SLOW},
                {"name": "bill", "capacity": 50, "fill_rate": SLOW, "initial_tokens": 5},
            ],
        },
    )
    assert list(tree) == ["all", "acme", "bill"]
    assert [tree["acme"].consume() for _ in range(50)] == [True] * 2 + [False] * 48
    assert tree["all"].tokens == pytest.approx(98, abs=0.01)
    assert tree["bill"].tokens == pytest.approx(5, abs=0.01)
    assert tree["bill"].parent is tree["all"]


def test_an_invalid_hierarchy_entry_is_named_in_the_error(redis_client):
    config = {"name": "all", "capacity": 5, "fill_rate": 1, "children": [{"name": "acme", "capacity": 5}]}
    with pytest.raises(ConfigError, match=r"children\[0\]\.fill_rate"):
        create_redis_bucket_hierarchy(redis_client, config)


CONTENDER = """
import json, sys, time, redis
from bucketflow.distributed import RedisTokenBucket
client = redis.Redis(port=int(sys.argv[1]))
bucket = RedisTokenBucket(client, "shop", 10, 300)
client.incr("ready")
while int(client.get("ready")) < 2: time.sleep(0.001)
first, granted, stop = client.time(), 0, time.monotonic() + 0.6
while time.monotonic() < stop: granted += bucket.consume()
print(json.dumps([first, client.time(), granted]))
"""


@pytest.mark.timing
@pytest.mark.usefixtures("redis_client")
def test_processes_together_use_the_limit_and_never_exceed_it(redis_server):
    argv = [sys.executable, "-c", CONTENDER, str(redis_server.port)]
    contenders = [subprocess.Popen(argv, stdout=subprocess.PIPE) for _ in range(2)]
    results = [json.loads(contender.communicate(timeout=30)[0]) for contender in contenders]
    first, last = min(result[0] for result in results), max(result[1] for result in results)
    elapsed = last[0] - first[0] + (last[1] - first[1]) / 1e6
    granted = sum(result[2] for result in results)
    assert 0.9 * (10 + 300 * 0.6) <= granted <= 10 + 300 * elapsed


# Waiting ------------------------------------------------------------------------------------------------------------


def test_a_blocking_call_is_granted_when_the_tokens_are_there(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 1, 20, initial_tokens=0)
    began = time.monotonic()
    assert bucket.consume(block=True, timeout=5)
    assert time.monotonic() - began >= 0.05 - 0.001


def test_a_wait_beyond_the_timeout_is_refused_at_once_and_spends_nothing(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 5, 1, initial_tokens=0)
    began = time.monotonic()
    assert not bucket.consume(5, block=True, timeout=2)
    assert time.monotonic() - began < 1.5
    assert bucket.tokens < 1.5


def test_waiting_threads_are_granted_in_order_and_not_overtaken(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 1, 25, initial_tokens=0)
    bucket.wait_time()
    granted = []
    threads = [
        threading.Thread(target=lambda number=number: bucket.consume(block=True) and granted.append(number))
        for number in range(5)
    ]
    for number, thread in enumerate(threads):
        thread.start()
        while len(bucket._polling_queue.waiters) + len(granted) <= number:
            time.sleep(0.0005)
    refusal = bucket.try_consume()
    overtaken = bucket.consume()
    for thread in threads:
        thread.join(10)
    assert granted == [0, 1, 2, 3, 4]
    assert not overtaken
    assert not refusal.allowed
    assert refusal.binding == 0


def test_a_refund_wakes_a_waiting_call(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 5, SLOW, initial_tokens=0)
    waiter = threading.Thread(target=bucket.consume, args=(1,), kwargs={"block": True}, daemon=True)
    waiter.start()
    while not bucket._polling_queue.current_refusal().retry_after:
        time.sleep(0.001)
    bucket.refund(1)
    waiter.join(5)
    assert not waiter.is_alive()


# Objects that differ in their limit, as in a rolling deploy

mixed_limits = st.lists(
    st.builds(Limit, st.sampled_from([1, 3, 10, 30]), st.sampled_from([0.1, 1, 10, 200])), min_size=2, max_size=3
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mixed_limits,
    st.sampled_from([None, 4]),
    st.lists(
        st.tuples(st.sampled_from([0, 0.001, 0.05, 1 / 3, 5]), st.integers(0, 2), st.integers(1, 12)), max_size=30
    ),
)
def test_objects_that_differ_in_the_limit_of_a_key_take_no_more_than_the_largest_allows(
    redis_client, limits, lease, steps
):
    redis_client.flushall()
    clock, runner, buckets, starts = FakeClock(), StoppedRunner(redis_client, TIMEOUT), [], []
    redis_client.set("clock", 0)
    for limit in limits:
        bucket = RedisTokenBucket(redis_client, "mixed", limit.capacity, limit.fill_rate, lease=lease, clock=clock)
        bucket._runner = bucket._monitor._runner = runner
        buckets.append(bucket)
    for seconds, caller, calls in steps:
        clock.advance(seconds)
        now = clock.now() / SECOND
        redis_client.set("clock", clock.now())
        taken = sum(buckets[caller % len(buckets)].consume() for _ in range(calls))
        starts += [(now, 1)] * taken
    for bucket in buckets:
        bucket.close()
    largest = Limit(max(limit.capacity for limit in limits), max(limit.fill_rate for limit in limits))
    if starts:
        assert worst_excess(starts, largest) < 1e-6 * (1 + largest.fill_rate)


@pytest.mark.parametrize("lease", [None, 1])
@pytest.mark.parametrize("operation", ["consume", "refund"])
def test_a_smaller_limit_slows_no_object_down_and_waits_no_longer_than_the_larger_one_takes(
    redis_client, operation, lease
):
    clock, runner = FakeClock(), StoppedRunner(redis_client, TIMEOUT)
    large, small = (
        RedisTokenBucket(redis_client, "mixed", size, size, lease=size_of_lease, clock=clock)
        for size, size_of_lease in ((100, None), (1, lease))
    )
    for bucket in (large, small):
        bucket._runner = bucket._monitor._runner = runner
    redis_client.set("clock", 0)
    assert large.consume(100)
    assert not small.consume()
    assert small.wait_time() == pytest.approx(1, abs=1e-6)
    if operation == "refund":
        small.refund(1)
    clock.advance(0.5)
    redis_client.set("clock", clock.now())
    assert large.tokens == pytest.approx(51 if operation == "refund" else 50)
    clock.advance(0.5)
    redis_client.set("clock", clock.now())
    assert small.consume()
    for bucket in (large, small):
        bucket.close()
