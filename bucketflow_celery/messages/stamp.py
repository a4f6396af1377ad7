"""
Tenant stamp: the message header that names a task's tenant.

A publisher that has the app's ``Throttle`` writes it. Otherwise the worker determines the tenant from the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bucketflow.errors import ConfigError
from bucketflow_celery.config.rules import HEADER, TenantRule, rules_of
from bucketflow_celery.config.task_calls import calls_of, tenant_of_calls
from bucketflow_celery.scheduling import ticket

__all__ = ["stamp"]


def stamp(  # noqa: PLR0913 - what the throttle and the signal say
    app: Any, default: TenantRule, name: str, headers: dict[str, Any], body: Any, *, inherits: bool = False
) -> None:
    """
    Write the tenant into *headers*, unless the caller has set it.

    If the tenant cannot be determined here, the worker determines it: an error then reaches the task's result.

    Args:
        app: The publisher's Celery app.
        default: The throttle's rule for tasks without a rule of their own.
        name: The name of the task to be published.
        headers: The message's headers, to be changed.
        body: The message's body. Its first two items are the positional and the keyword arguments.
        inherits: Whether a task without a tenant of its own gets that of the task that publishes it, if its decorator
            does not say.
    """
    # A task that retries itself publishes the headers it was received with. Their ticket belongs to that delivery.
    headers.pop(ticket.HEADER, None)
    if headers.get(HEADER) is not None:
        return
    parent = app.current_worker_task
    request = None if parent is None else parent.request
    if request is not None and _is_retry(request, headers) and request.get(HEADER) is not None:
        # A retry with headers of its own: Celery replaces all that the task was received with.
        headers[HEADER] = request.get(HEADER)
        return
    task = app.tasks.get(name)
    if task is None or not isinstance(body, tuple):
        return
    try:
        calls = calls_of(app.tasks, task, body[0], body[1])
        tenant = tenant_of_calls(calls, default, headers)
        own = rules_of(calls[0].task if calls else task).tenant_inherits
        if tenant is None and parent is not None and (inherits if own is None else own):
            tenant = _tenant_of_parent(app, default, parent)
    except ConfigError:
        return
    if tenant is not None:
        headers[HEADER] = tenant


def _is_retry(request: Any, headers: Mapping[str, Any]) -> bool:
    """Return whether the task of *request* publishes itself again. A replacement has its id, too, and is nested."""
    nesting = request.get("replaced_task_nesting") or 0
    return request.id == headers.get("id") and nesting == (headers.get("replaced_task_nesting") or 0)


def _tenant_of_parent(app: Any, default: TenantRule, parent: Any) -> str | None:
    request = parent.request
    headers = vars(request)
    if parent.app is not app:  # its rules are those of another throttle
        return headers.get(HEADER) or None
    return tenant_of_calls(calls_of(app.tasks, parent, request.args, request.kwargs), default, headers)
