"""What the decorators limit: the kind of a callable, its name in errors, and the limit of its calls."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from bucketflow.errors import ConfigError
from bucketflow.limit import Limit
from bucketflow.validation import check_number

__all__ = ["decorated", "is_coroutine_function", "limit_of", "name_of", "wraps_async_generator"]

#: Before Python 3.12 only asyncio knows the functions that a library has marked as coroutine functions.
_is_coroutine_function = inspect.iscoroutinefunction if sys.version_info >= (3, 12) else asyncio.iscoroutinefunction

FuncT = TypeVar("FuncT", bound="Callable[..., Any]")


def limit_of(tokens_per_second: float, capacity: float | None) -> Limit:
    """Return the limit of a decorator. Its capacity is at least 1, because a smaller bucket could grant no call."""
    rate = check_number("tokens_per_second", tokens_per_second, "a number above 0, as in @rate_limit(10)", above=True)
    if capacity is None:
        return Limit(max(1.0, rate), rate)
    return Limit(check_number("capacity", capacity, "a number of calls, 1 or more", minimum=1), rate)


def is_coroutine_function(func: Callable[..., object]) -> bool:
    """
    Return whether a call of *func* certainly returns a coroutine.

    True for a coroutine function or method, one that is marked as such, a ``functools.partial`` of one, and an object
    whose ``__call__`` is one. A plain function may return a coroutine, too: only its first call shows.
    """
    return _is_any(_is_coroutine_function, func)


def name_of(func: Callable[..., object]) -> str:
    """
    Return the name of *func* in errors.

    Raises:
        ConfigError: *func* cannot be called, or is a generator. A call of a generator starts nothing: its first step
            does, and that could not wait without blocking.
    """
    if not callable(func):
        raise ConfigError("func", func, "a function: put the decorator under @classmethod or @property")
    if _is_any(inspect.isasyncgenfunction, func):
        raise ConfigError("func", func, "a function or coroutine function, not an asynchronous generator")
    if _is_any(inspect.isgeneratorfunction, func):
        raise ConfigError("func", func, "a function or coroutine function, not a generator")
    return getattr(func, "__qualname__", None) or repr(func)


def wraps_async_generator(func: Callable[..., object]) -> bool:
    """Return whether *func* wraps an asynchronous generator, as ``contextlib.asynccontextmanager`` does."""
    return inspect.isasyncgenfunction(inspect.unwrap(_inner(func)))


def decorated(decorate: Callable[[Any], Any], func: FuncT) -> FuncT:
    """Apply *decorate* to *func*, or to the function of a ``staticmethod``, which then is one again."""
    if isinstance(func, staticmethod):
        return cast("FuncT", staticmethod(decorate(func.__func__)))
    return cast("FuncT", decorate(func))


def _is_any(test: Callable[[Any], bool], func: Any) -> bool:  # noqa: ANN401 - any callable
    """Return whether *test* holds for *func*, for the function that it is a partial of, or for its ``__call__``."""
    func = _inner(func)
    return test(func) or test(type(func).__call__)


def _inner(func: Any) -> Any:  # noqa: ANN401 - any callable
    while isinstance(func, functools.partial):
        func = func.func
    return func
