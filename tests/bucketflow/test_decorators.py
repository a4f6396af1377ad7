"""The decorators: the same function, started no more often than the limit allows."""

from __future__ import annotations

import asyncio
import functools
import inspect

import pytest

from bucketflow import ConfigError, RateLimitExceeded, async_rate_limit, decorators, errors, rate_limit
from bucketflow.testing import FakeClock

each_decorator = pytest.mark.parametrize("decorator", [rate_limit, async_rate_limit])


@pytest.fixture
def clock():
    return FakeClock()


def test_a_function_is_called_as_often_as_allowed_and_waits_for_the_rest(clock):
    calls = []

    @rate_limit(2, clock=clock)
    def call(value, *, twice=False):
        calls.append(clock.now())
        return value * 2 if twice else value

    assert [call(3), call(3, twice=True), call(value=4), call(5)] == [3, 6, 4, 5]
    assert calls == [0, 0, 500_000, 1_000_000]


@each_decorator
async def test_a_coroutine_function_waits_without_blocking_its_loop(decorator, clock):
    calls = []

    @decorator(1, clock=clock)
    async def call(value):
        calls.append(clock.now())
        return value

    assert inspect.iscoroutinefunction(call)
    assert await asyncio.gather(call(1), call(2), call(3)) == [1, 2, 3]
    assert calls == [0, 1_000_000, 2_000_000]


async def test_a_plain_function_becomes_a_coroutine_function_under_async_rate_limit(clock):
    @async_rate_limit(1, clock=clock)
    def call(value):
        return value

    assert [await call(1), await call(2)] == [1, 2]
    assert clock.now() == 1_000_000


def test_without_block_a_refused_call_raises_an_error_with_its_retry_after(clock):
    calls = []

    @rate_limit(4, capacity=1, block=False, clock=clock)
    def call():
        calls.append(clock.now())

    call()
    with pytest.raises(RateLimitExceeded) as raised:
        call()
    assert (raised.value.key, raised.value.cost, raised.value.retry_after) == (call.__qualname__, 1, 0.25)
    clock.advance(raised.value.retry_after)
    call()
    assert calls == [0, 250_000]


@each_decorator
async def test_without_block_a_refused_coroutine_raises_the_same_error(decorator, clock):
    @decorator(4, 1, False, clock=clock)  # noqa: FBT003 - as 0.1.0 allowed
    async def call():
        return "done"

    assert await call() == "done"
    with pytest.raises(RateLimitExceeded) as raised:
        await call()
    assert (raised.value.key, raised.value.retry_after) == (call.__qualname__, 0.25)


@pytest.mark.parametrize("inner", ["method", "class_method", "static_method"])
def test_all_objects_share_the_bucket_of_a_method(inner, clock):
    class Client:
        @rate_limit(1, block=False, clock=clock)
        def method(self):
            return self

        @classmethod
        @rate_limit(1, block=False, clock=clock)
        def class_method(cls):
            return cls

        @staticmethod
        @rate_limit(1, block=False, clock=clock)
        def static_method():
            return None

    first, second = Client(), Client()
    assert getattr(first, inner)() in (first, Client, None)
    with pytest.raises(RateLimitExceeded, match=f"Client.{inner}"):
        getattr(second, inner)()


@each_decorator
def test_name_docstring_and_signature_are_kept(decorator):
    def call(value: int, *, twice: bool = False) -> str:
        """Repeat *value*."""
        return str(value) * (1 + twice)

    limited = decorator(1)(call)
    assert (limited.__name__, limited.__doc__, limited.__wrapped__) == ("call", "Repeat *value*.", call)
    assert inspect.signature(limited) == inspect.signature(call)


def test_any_callable_can_be_limited(clock):
    assert rate_limit(1, clock=clock)(functools.partial(max, 1))(2) == 2

    refused = rate_limit(1, block=False, clock=clock)(functools.partial(max, 1))
    refused(2)
    with pytest.raises(RateLimitExceeded, match="partial"):
        refused(2)


@pytest.mark.parametrize(("rate", "capacity", "burst"), [(3, None, 3), (0.5, None, 1), (2.5, None, 2), (1, 7, 7)])
def test_the_capacity_defaults_to_the_calls_of_one_second_and_at_least_one(rate, capacity, burst, clock):
    call = rate_limit(rate, capacity, block=False, clock=clock)(lambda: True)
    assert all(call() for _ in range(burst))
    with pytest.raises(RateLimitExceeded):
        call()


@each_decorator
def test_a_decorator_without_a_rate_raises_an_error_that_shows_the_usage(decorator):
    with pytest.raises(ConfigError, match=r"tokens_per_second .* @rate_limit\(10\)"):

        @decorator
        def call(): ...


@each_decorator
@pytest.mark.parametrize(
    ("arguments", "entry"),
    [((0,), "tokens_per_second"), (("1/s",), "tokens_per_second"), ((1, 0.5), "capacity"), ((1, "2"), "capacity")],
)
def test_an_invalid_limit_is_named_when_the_decorator_is_created(decorator, arguments, entry):
    with pytest.raises(ConfigError) as raised:
        decorator(*arguments)
    assert raised.value.entry == entry


@each_decorator
def test_objects_that_are_not_callable_and_asynchronous_generators_are_refused(decorator):
    async def generate():
        yield 1

    with pytest.raises(ConfigError, match="asynchronous generator"):
        decorator(1)(generate)
    with pytest.raises(ConfigError, match="@classmethod"):
        decorator(1)(classmethod(generate))


def test_the_error_is_importable_from_the_module_of_0_1_0():
    assert decorators.RateLimitExceeded is errors.RateLimitExceeded
