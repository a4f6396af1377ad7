"""Every form of callable under the decorators: it waits as its callers can, or the decorator refuses it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import types

import pytest

from bucketflow import ConfigError, RateLimitExceeded, async_rate_limit, rate_limit
from bucketflow.testing import FakeClock

each_decorator = pytest.mark.parametrize("decorator", [rate_limit, async_rate_limit])


class LoopClock(FakeClock):
    """A clock on which no thread may sleep: the thread of the tests runs the event loop."""

    def sleep(self, seconds, wake):  # noqa: ARG002 - the interface
        raise AssertionError("the event loop was blocked")


async def coroutine(value=1):
    return value


def plain(value=1):
    return value


def generator():
    yield 1


async def async_generator():
    yield 1


class AsyncCall:
    async def __call__(self, value=1):
        return value

    async def method(self, value=1):
        return value

    @classmethod
    async def class_method(cls, value=1):
        return value

    @staticmethod
    async def static_method(value=1):
        return value


class PlainCall:
    def __call__(self, value=1):
        return value

    method = __call__


class GeneratorCall:
    def __call__(self):
        yield 1


class AsyncGeneratorCall:
    async def __call__(self):
        yield 1


class Awaitable:
    def __init__(self, value=1):
        self.value = value

    def __await__(self):
        return coroutine(self.value).__await__()


class Request(Awaitable):
    """What ``aiohttp.ClientSession.get`` returns: it is awaited, or entered."""

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc):
        return None


def wrapped(func):
    @functools.wraps(func)
    def wrapper(*args, **kwargs):
        return func(*args, **kwargs)

    return wrapper


def marked(value=1):
    return coroutine(value)


if sys.version_info >= (3, 12):
    inspect.markcoroutinefunction(marked)
else:
    marked._is_coroutine = asyncio.coroutines._is_coroutine

#: A call returns a coroutine, so a coroutine waits: the decorated callable, by its form.
ASYNCHRONOUS = {
    "coroutine function": coroutine,
    "partial": functools.partial(coroutine, 1),
    "partial of a partial": functools.partial(functools.partial(coroutine), 1),
    "async __call__": AsyncCall(),
    "partial of async __call__": functools.partial(AsyncCall(), 1),
    "bound method": AsyncCall().method,
    "bound async __call__": AsyncCall().__call__,
    "classmethod, bound": AsyncCall.class_method,
    "staticmethod, bound": AsyncCall.static_method,
    "marked as a coroutine function": marked,
    "lambda": lambda value=1: coroutine(value),
    "wrapper": wrapped(coroutine),
    "wrapper of a wrapper": wrapped(wrapped(AsyncCall().method)),
    "class of awaitables": Awaitable,
    "returns a task": lambda value=1: asyncio.ensure_future(coroutine(value)),
    "lru_cache of a factory": functools.lru_cache(maxsize=None)(lambda value=1: Awaitable(value)),
}

#: A call returns its result, so the calling thread waits.
SYNCHRONOUS = {
    "function": plain,
    "lambda": lambda value=1: value,
    "builtin": int,
    "partial": functools.partial(plain, 1),
    "__call__": PlainCall(),
    "bound method": PlainCall().method,
    "class": AsyncCall,
    "wrapper": wrapped(plain),
    "lru_cache": functools.lru_cache(plain),
    "singledispatch": functools.partial(functools.singledispatch(plain), 1),
    "contextmanager": contextlib.contextmanager(generator),
    "runs a coroutine": functools.wraps(coroutine)(
        lambda value=1: asyncio.new_event_loop().run_until_complete(coroutine(value))
    ),
}

#: A call starts nothing, so the decorator refuses it.
REFUSED = {
    "generator": generator,
    "partial of a generator": functools.partial(generator),
    "generator __call__": GeneratorCall(),
    "generator-based coroutine": types.coroutine(generator),
    "async generator": async_generator,
    "partial of an async generator": functools.partial(async_generator),
    "async generator __call__": AsyncGeneratorCall(),
    "classmethod": classmethod(coroutine),
    "property": property(plain),
    "not callable": 5,
}


@each_decorator
@pytest.mark.parametrize("form", ASYNCHRONOUS)
async def test_what_returns_an_awaitable_never_blocks_the_event_loop(decorator, form):
    clock = LoopClock()
    call = decorator(1, clock=clock)(ASYNCHRONOUS[form])
    assert await asyncio.gather(*(call() for _ in range(3))) == [1, 1, 1]
    assert clock.now() == 2_000_000


@pytest.mark.parametrize("form", ASYNCHRONOUS)
async def test_a_cancelled_call_leaves_its_place_to_the_next(form):
    clock = FakeClock(jump=False)
    call = rate_limit(1, clock=clock)(ASYNCHRONOUS[form])
    assert await call() == 1
    first, second = asyncio.ensure_future(call()), asyncio.ensure_future(call())
    while len(clock.sleeping) < 2:  # noqa: ASYNC110 - the clock has no event
        await asyncio.sleep(0)
    first.cancel()
    clock.advance(1)
    assert await second == 1


@pytest.mark.parametrize("form", ASYNCHRONOUS)
async def test_without_block_a_refused_call_raises_and_waits_for_nothing(form):
    call = rate_limit(1, block=False, clock=LoopClock())(ASYNCHRONOUS[form])
    assert await call() == 1
    with pytest.raises(RateLimitExceeded):
        await call()


@pytest.mark.parametrize("form", SYNCHRONOUS)
def test_what_returns_its_result_blocks_the_calling_thread(form):
    clock = FakeClock()
    call = rate_limit(1, clock=clock)(SYNCHRONOUS[form])
    assert not inspect.isawaitable(call())
    assert type(call()) is type(SYNCHRONOUS[form]())
    assert clock.now() == 1_000_000


@pytest.mark.parametrize("form", [form for form in SYNCHRONOUS if form != "runs a coroutine"])
async def test_what_returns_its_result_can_be_awaited_under_async_rate_limit(form):
    clock = LoopClock()
    call = async_rate_limit(1, clock=clock)(SYNCHRONOUS[form])
    results = [await call(), await call()]
    assert {type(result) for result in results} == {type(SYNCHRONOUS[form]())}
    assert clock.now() == 1_000_000


@each_decorator
@pytest.mark.parametrize("form", REFUSED)
def test_what_starts_nothing_when_it_is_called_is_refused(decorator, form):
    with pytest.raises(ConfigError) as raised:
        decorator(1)(REFUSED[form])
    assert raised.value.entry == "func"


def test_an_asynchronous_context_manager_is_refused_by_rate_limit():
    with pytest.raises(ConfigError, match="async_rate_limit"):
        rate_limit(1)(contextlib.asynccontextmanager(async_generator))


async def test_an_asynchronous_context_manager_waits_under_async_rate_limit():
    clock = LoopClock()
    connect = async_rate_limit(1, clock=clock)(contextlib.asynccontextmanager(async_generator))
    for _ in range(2):
        async with await connect() as value:
            assert value == 1
    assert clock.now() == 1_000_000


@pytest.mark.parametrize("function", [Request, lambda: Request(), lambda: async_generator()])  # noqa: PLW0108
def test_a_result_that_no_coroutine_can_replace_raises_at_the_first_call(function):
    call = rate_limit(1)(function)
    with pytest.raises(ConfigError, match="async_rate_limit"):
        call()


def test_a_function_that_returned_an_awaitable_once_still_blocks_a_thread_without_a_loop():
    clock, results = FakeClock(), [Awaitable(), 2, 3]
    call = rate_limit(1, clock=clock)(lambda: results.pop(0))
    assert isinstance(call(), Awaitable)
    assert [call(), call()] == [2, 3]
    assert clock.now() == 2_000_000


@each_decorator
async def test_the_decorator_works_above_staticmethod_and_below_it(decorator):
    clock = LoopClock()

    class Service:
        @decorator(1, clock=clock)
        @staticmethod
        async def above(value):
            return value

        @staticmethod
        @decorator(1, clock=clock)
        async def below(value):
            return value

    for get in (Service.above, Service().above, Service.below, Service().below):
        assert await get(5) == 5
    assert clock.now() == 2_000_000


def test_a_plain_static_method_can_be_called_through_class_and_object():
    clock = FakeClock()

    class Service:
        @rate_limit(1, clock=clock)
        @staticmethod
        def get(value):
            return value

    assert [Service.get(1), Service().get(2)] == [1, 2]
    assert clock.now() == 1_000_000
