"""The arguments of functions, cached: reading a signature costs more than a decision of admission."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

__all__ = ["Arguments", "arguments_of"]


class Arguments(NamedTuple):
    """
    The arguments of a function.

    Attributes:
        signature: Its signature.
        positions: Index of each argument that may be positional, by name.
    """

    signature: inspect.Signature
    positions: Mapping[str, int]

    def accepts(self, name: str) -> bool:
        """Return whether the function takes an argument *name*."""
        parameters = self.signature.parameters
        return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


# Weak, because a task's function often refers to its app, which must not live for as long as the process. A method
# lives only while it is used, so what is cached is its function, whose own signature has one argument more.
_functions: WeakKeyDictionary[Callable[..., Any], Arguments] = WeakKeyDictionary()
_methods: WeakKeyDictionary[Callable[..., Any], Arguments] = WeakKeyDictionary()


def arguments_of(function: Callable[..., Any]) -> Arguments:
    """Return the arguments of *function*; of a bound method without ``self``."""
    cache, key = (_methods, function.__func__) if inspect.ismethod(function) else (_functions, function)
    try:
        known = cache.get(key)
    except TypeError:  # it cannot be referenced weakly, or hashed
        return _read(function)
    if known is None:
        known = cache[key] = _read(function)
    return known


def _read(function: Callable[..., Any]) -> Arguments:
    signature = inspect.signature(function)
    positions = {}
    for position, parameter in enumerate(signature.parameters.values()):
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        positions[parameter.name] = position
    return Arguments(signature, positions)
