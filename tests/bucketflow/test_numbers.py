"""What counts as a number, in every place where the library takes one."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
import redis
import redis.asyncio
from number_forms import NOT_FINITE, NOT_NUMBERS, NUMBERS, label

from bucketflow import (
    AsyncTokenBucket,
    ConfigError,
    CostExceedsCapacity,
    HierarchicalTokenBucket,
    Limit,
    TokenBucket,
    async_rate_limit,
    create_bucket_hierarchy,
    rate_limit,
)
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.testing import FakeClock, MemoryRedis
from bucketflow.validation import check_count, check_number

each_number = pytest.mark.parametrize("two", NUMBERS, ids=label)
each_other = pytest.mark.parametrize("value", [*NOT_NUMBERS, *NOT_FINITE], ids=label)


@each_number
def test_a_number_becomes_a_float(two):
    number = check_number("cost", two, "a number")
    assert (type(number), number) == (float, 2)


@each_number
def test_a_whole_number_becomes_an_int(two):
    count = check_count("count", two, "a whole number")
    assert (type(count), count) == (int, 2)


@pytest.mark.parametrize("value", [Decimal("2.5"), Fraction(5, 2), 2.5, 0, -1, Decimal(0)])
def test_a_count_is_whole_and_at_least_1(value):
    with pytest.raises(ConfigError):
        check_count("count", value, "a whole number")


def test_a_count_keeps_more_digits_than_a_float():
    assert check_count("count", 2**53 + 1, "a whole number") == 2**53 + 1


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=label)
def test_what_is_not_a_number_is_named_with_its_type(value):
    with pytest.raises(ConfigError, match=f", not .*{type(value).__name__}$") as raised:
        check_number("cost", value, "a number of tokens")
    assert raised.value.value is value


@pytest.mark.parametrize("value", NOT_FINITE, ids=label)
def test_what_no_float_holds_is_named(value):
    with pytest.raises(ConfigError, match=r"^cost is .*, expected a number of tokens$"):
        check_number("cost", value, "a number of tokens")


@pytest.mark.parametrize("value", [Decimal("0.1"), Fraction(1, 3), Decimal("1e-300")])
def test_a_number_may_lose_digits(value):
    assert check_number("cost", value, "a number") == float(value)


@each_number
def test_a_limit_of_any_numbers_equals_that_of_floats(two):
    limit = Limit(two, two)
    assert (limit, limit.span, repr(limit).count(".")) == (Limit(2, 2), 1_000_000, 0 if type(two) is int else 2)
    assert Limit.parse("1/s", capacity=two) == Limit(2, 1)


def buckets_of(two, clock):
    root = HierarchicalTokenBucket(two, two, clock=clock)
    tree = create_bucket_hierarchy({"name": "a", "capacity": two, "fill_rate": two, "initial_tokens": two}, clock=clock)
    return [TokenBucket(two, two, two, clock=clock), root, HierarchicalTokenBucket(two, two, root, two), tree["a"]]


@each_number
@pytest.mark.parametrize("position", range(4))
def test_every_argument_of_a_bucket_may_be_any_number(two, position):
    clock = FakeClock(two)
    bucket = buckets_of(two, clock)[position]
    assert bucket.consume(two)
    assert not bucket.consume(two)
    assert bucket.try_consume(two).retry_after == bucket.wait_time(two) == 1
    assert bucket.consume(two, block=True, timeout=two)
    bucket.refund(two)
    assert bucket.tokens == 2
    clock.advance(two)
    assert clock.now() == 5_000_000
    with pytest.raises(CostExceedsCapacity):
        bucket.try_consume(two + two)
    if position == 0:
        assert bucket.reserve(two).ready


@each_number
async def test_every_argument_of_an_async_bucket_may_be_any_number(two):
    clock = FakeClock()
    bucket = AsyncTokenBucket(two, two, two, clock=clock)
    assert await bucket.consume(two)
    assert await bucket.consume(two, block=True, timeout=two)
    assert clock.now() == 1_000_000


@each_number
def test_every_argument_of_a_decorator_may_be_any_number(two):
    clock = FakeClock()
    call = rate_limit(two, two, clock=clock)(clock.now)
    assert [call(), call(), call()] == [0, 0, 500_000]


@each_number
def test_every_argument_of_a_redis_bucket_may_be_any_number(two):
    memory = MemoryRedis(FakeClock())
    bucket = RedisTokenBucket(memory, "parent", two, two, two, timeout=two, lease=two)
    child = RedisTokenBucket(memory, "child", two, two, two, parent=bucket, timeout=two)
    assert bucket.consume(two)
    bucket.refund(two)
    bucket.close()
    assert child.consume(two)
    assert not child.consume(two)
    assert child.consume(two, block=True, timeout=two)


@each_other
@pytest.mark.parametrize("method", ["consume", "try_consume", "wait_time", "refund"])
def test_no_bucket_takes_anything_else_as_a_cost(value, method):
    for bucket in buckets_of(2, FakeClock()):
        with pytest.raises(ConfigError, match="tokens"):
            getattr(bucket, method)(value)
        assert bucket.tokens == 2


@each_other
def test_no_limit_and_no_timeout_is_anything_else(value):
    client, async_client = redis.Redis(), redis.asyncio.Redis()
    cases = {
        "capacity": [
            lambda: Limit(value, 1),
            lambda: TokenBucket(value, 1),
            lambda: RedisTokenBucket(client, "a", value, 1),
        ],
        "fill_rate": [lambda: Limit(1, value), lambda: AsyncRedisTokenBucket(async_client, "a", 1, value)],
        "tokens_per_second": [lambda: rate_limit(value), lambda: async_rate_limit(value)],
        "start": [lambda: FakeClock(value)],
        "seconds": [lambda: FakeClock().advance(value)],
    }
    if value is not None:
        cases["timeout"] = [lambda: TokenBucket(1, 1).consume(1, block=True, timeout=value)]
        cases["initial_tokens"] = [lambda: TokenBucket(1, 1, value), lambda: RedisTokenBucket(client, "a", 1, 1, value)]
        cases["lease"] = [lambda: RedisTokenBucket(client, "a", 1, 1, lease=value)]
    for entry, calls in cases.items():
        for call in calls:
            with pytest.raises(ConfigError, match=entry):
                call()
