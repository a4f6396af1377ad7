"""The message header that exempts a task from ``max_wait``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HEADER", "exempted", "is_exempt"]

#: The header. Its value is true.
HEADER = "bucketflow_no_max_wait"

#: Arguments of Celery's chains, groups and chords that hold signatures.
_NESTED = ("tasks", "header", "body")


def is_exempt(headers: Mapping[str, Any]) -> bool:
    """Return whether *headers* exempt their task from ``max_wait``."""
    return bool(headers.get(HEADER))


def exempted(signature: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a copy of Celery's *signature* whose tasks are exempt from ``max_wait``.

    Args:
        signature: A signature in the form of a mapping. All tasks of a chain, group or chord are exempt.
    """
    options = signature.get("options") or {}
    kwargs = dict(signature.get("kwargs") or {})
    if signature.get("subtask_type"):
        kwargs |= {name: _each(kwargs[name]) for name in _NESTED if kwargs.get(name)}
    headers = {**(options.get("headers") or {}), HEADER: True}
    return {**signature, "kwargs": kwargs, "options": {**options, "headers": headers}}


def _each(value: Any) -> Any:
    if isinstance(value, Mapping):
        return exempted(value)
    return [exempted(one) if isinstance(one, Mapping) else one for one in value]
