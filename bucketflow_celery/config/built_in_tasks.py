"""Celery's own tasks: how they are recognised, and which of them call another task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bucketflow.errors import ConfigError

__all__ = ["BATCHES", "Batch", "batch_of", "is_built_in"]

#: Prefix of the names that Celery gives to the tasks of its own.
PREFIX = "celery."

#: The tasks that call another task once for each item, and whether they spread an item over its arguments.
BATCHES = {"celery.map": False, "celery.starmap": True}


class Batch(NamedTuple):
    """
    The calls of a message for ``celery.map`` or ``celery.starmap``; a chunk is the latter.

    Attributes:
        task: Name of the task that is called.
        calls: The positional arguments of each call.
    """

    task: str
    calls: Sequence[Sequence[Any]]


def is_built_in(name: str) -> bool:
    """Return whether *name* is the name of a task that Celery itself registers in every app."""
    return name.startswith(PREFIX)


def batch_of(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Batch | None:
    """
    Return the calls that a message makes of another task.

    Args:
        name: Name of the task that the message calls.
        args: Positional arguments as sent.
        kwargs: Keyword arguments as sent.

    Returns:
        ``None`` if the task calls no other, or if its arguments are such that Celery itself fails it before any call.

    Raises:
        ConfigError: An item cannot be spread over arguments. Celery would find that out after the calls before it.
    """
    is_spread = BATCHES.get(name)
    if is_spread is None:
        return None
    given = {**dict(zip(("task", "it"), args, strict=False)), **kwargs}
    inner, items = _name_of(given.get("task")), given.get("it")
    # An iterator can be read only once, and that is for the task. No serializer lets one through to a worker.
    if inner is None or not isinstance(items, Iterable) or isinstance(items, Iterator):
        return None
    return Batch(inner, [_spread(name, item) if is_spread else (item,) for item in items])


def _name_of(task: Any) -> str | None:
    """Return the name of the task of a signature: as an object, as the mapping that JSON makes of it, or a name."""
    while isinstance(task, Mapping):
        task = task.get("task")
    name = getattr(task, "name", task)
    return name if isinstance(name, str) else None


def _spread(name: str, item: Any) -> Sequence[Any]:
    if not isinstance(item, Iterable):
        raise ConfigError(f"an item of {name}", item, "the positional arguments of one call, as a list")
    return tuple(item)
