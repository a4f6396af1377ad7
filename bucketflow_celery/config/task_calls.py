"""The calls that one message makes, and their tenant and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bucketflow.errors import ConfigError
from bucketflow_celery.config.built_in_tasks import batch_of, is_built_in
from bucketflow_celery.config.rules import HEADER, TenantRule, cost_of, rules_of, tenant_of

__all__ = ["TaskCall", "calls_of", "cost_of_calls", "tenant_of_calls"]


class TaskCall(NamedTuple):
    """
    One call of a task.

    Attributes:
        task: The task.
        args: Positional arguments.
        kwargs: Keyword arguments.
    """

    task: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


def calls_of(tasks: Mapping[str, Any], task: Any, args: Any, kwargs: Any) -> list[TaskCall]:
    """
    Return the calls that a message makes: one, or those of a ``celery.map``, a ``celery.starmap`` or a chunk.

    Args:
        tasks: The tasks of the app, by name.
        task: Task that the message calls.
        args: Positional arguments as sent.
        kwargs: Keyword arguments as sent.

    Returns:
        Length 0 or more. All calls are of one task. A task that *tasks* does not have is not called: Celery fails the
        message with ``NotRegistered``.

    Raises:
        ConfigError: The calls are of several tasks, or cannot be determined.
    """
    batch = batch_of(task.name, args, kwargs) if is_built_in(task.name) else None
    if batch is None:
        return [TaskCall(task, args, kwargs)]
    inner = tasks.get(batch.task)
    if inner is None:
        return []
    calls = [call for inner_args in batch.calls for call in calls_of(tasks, inner, inner_args, {})]
    names = sorted({call.task.name for call in calls})
    if len(names) > 1:
        raise ConfigError(f"the task that {task.name} calls", ", ".join(names), "one task")
    return calls


def tenant_of_calls(calls: Sequence[TaskCall], default: TenantRule, headers: Mapping[str, Any]) -> str | None:
    """
    Return the tenant of a message, from its header or else its calls; ``None`` if it has none.

    Args:
        calls: The calls that the message makes.
        default: Rule of the throttle; see :func:`~bucketflow_celery.config.rules.tenant_of`.
        headers: Headers of the message.

    Raises:
        ConfigError: The calls are of several tenants, or the rule cannot be applied to one of them.
    """
    if len(calls) == 1 or headers.get(HEADER) is not None:
        return tenant_of(calls[0].task, default, headers, calls[0].args, calls[0].kwargs) if calls else None
    tenants = {tenant_of(call.task, default, {}, call.args, call.kwargs) for call in calls}
    if len(tenants) > 1:
        shown = ", ".join(sorted("none" if tenant is None else repr(tenant) for tenant in tenants))
        raise ConfigError(
            f"the tenant of {len(calls)} calls of {calls[0].task.name}",
            shown,
            "one tenant for all calls of a chunk, map or starmap: build one for each tenant",
        )
    return next(iter(tenants), None)


def cost_of_calls(calls: Sequence[TaskCall]) -> float:
    """
    Return the tokens that the calls take together.

    Raises:
        ConfigError: The cost of a call cannot be determined.
    """
    return sum(cost_of(rules_of(call.task).cost, call.task.run, call.args, call.kwargs) for call in calls)
