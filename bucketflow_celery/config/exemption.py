"""The message header that exempts a task from ``max_wait``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["HEADER", "exempted", "has_errbacks", "with_exempt_errbacks"]

#: The header. A true value exempts its task.
HEADER = "bucketflow_no_max_wait"

#: Arguments of Celery's chains, groups and chords that hold signatures.
_NESTED = ("tasks", "header", "body")


def exempted(signature: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a copy of Celery's *signature* whose tasks are exempt from ``max_wait``.

    Args:
        signature: A signature in the form of a mapping. All tasks of a chain, group or chord are exempt.
    """
    options = signature.get("options") or {}
    headers = {**(options.get("headers") or {}), HEADER: True}
    return {**signature, "kwargs": _nested(signature, exempted), "options": {**options, "headers": headers}}


def with_exempt_errbacks(signature: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a copy of *signature* whose errbacks are exempt from ``max_wait``, and not its tasks.

    Args:
        signature: As for :func:`exempted`; also those of the chord that it belongs to.
    """
    options = dict(signature.get("options") or {})
    if options.get("link_error"):
        errbacks = options["link_error"]
        options["link_error"] = [exempted(one) for one in ([errbacks] if isinstance(errbacks, Mapping) else errbacks)]
    if options.get("chord"):
        options["chord"] = with_exempt_errbacks(options["chord"])
    return {**signature, "kwargs": _nested(signature, with_exempt_errbacks), "options": options}


def has_errbacks(signature: Mapping[str, Any] | None) -> bool:
    """Return whether *signature*, or a task of this chain, group or chord, has errbacks."""
    if not signature:
        return False
    own = (signature.get("options") or {}).get("link_error")
    return bool(own) or any(has_errbacks(part) for part in _parts(signature))


def _parts(signature: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return the signatures of a chain, group or chord."""
    kwargs = signature.get("kwargs") or {}
    for name in _NESTED if signature.get("subtask_type") else ():
        value = kwargs.get(name) or ()
        yield from [value] if isinstance(value, Mapping) else value


def _nested(signature: Mapping[str, Any], change: Callable[[Mapping[str, Any]], Any]) -> dict[str, Any]:
    """Return the keyword arguments of *signature*; *change* is applied to the signatures among them."""
    kwargs = dict(signature.get("kwargs") or {})
    for name in _NESTED if signature.get("subtask_type") else ():
        if isinstance(kwargs.get(name), Mapping):
            kwargs[name] = change(kwargs[name])
        elif kwargs.get(name):
            kwargs[name] = [change(one) if isinstance(one, Mapping) else one for one in kwargs[name]]
    return kwargs
