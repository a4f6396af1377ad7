"""Whom a task is for: stamped on the message by the publisher, else worked out by the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from celery import current_task

from bucketflow.errors import ConfigError
from bucketflow_celery.rules import NO_RULES, TaskRules, tenant_from
from bucketflow_celery.settings import TenantRule

__all__ = ["HEADER", "rules_of", "stamp", "tenant_of"]

#: The message header that names the tenant. Whoever publishes may set it; what is set is never overwritten.
HEADER = "tenant"


def rules_of(task: Any) -> TaskRules:
    """Return what the decorator attached to *task*."""
    rules = getattr(task, "bucketflow", None)
    return rules if isinstance(rules, TaskRules) else NO_RULES


def tenant_of(
    task: Any,
    default: TenantRule,
    headers: Mapping[str, Any],
    args: Any,
    kwargs: Any,
) -> str | None:
    """
    Return whom a message is for, from its header or its arguments; ``None``: for nobody in particular.

    Args:
        task: The task it calls.
        default: The throttle's ``tenant``, where the task says nothing; an argument's name holds for tasks with one.
        headers: Of the message.
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        ConfigError: The rule cannot be applied to these arguments.
    """
    stamped = headers.get(HEADER)
    if stamped is not None:
        return str(stamped) or None
    rule = rules_of(task).tenant
    if rule is not None:
        return tenant_from(rule, task.run, args, kwargs)
    try:
        return tenant_from(default, task.run, args, kwargs)
    except ConfigError:
        if isinstance(default, str):
            return None
        raise


def stamp(app: Any, default: TenantRule, name: str, headers: dict[str, Any], body: Any) -> None:
    """
    Write the tenant into the headers of a message about to be published.

    One that cannot be told is left to the worker, whose error reaches the task's result; publishing goes on.
    """
    if headers.get(HEADER) is not None:
        return
    request = current_task.request if current_task else None
    if request is not None and request.id == headers.get("id") and request.get(HEADER) is not None:
        # A task that retries itself with headers of its own: Celery puts them in place of those it came with.
        headers[HEADER] = request.get(HEADER)
        return
    task = app.tasks.get(name)
    if task is None or not isinstance(body, tuple):
        return
    try:
        tenant = tenant_of(task, default, headers, body[0], body[1])
    except ConfigError:
        return
    if tenant is not None:
        headers[HEADER] = tenant
