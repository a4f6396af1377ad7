"""Whom a task is for: stamped on the message by the publisher, else worked out by the worker."""

from __future__ import annotations

from typing import Any

from celery import current_task

from bucketflow.errors import ConfigError
from bucketflow_celery.config.rules import HEADER, TenantRule, tenant_of

__all__ = ["stamp"]


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
