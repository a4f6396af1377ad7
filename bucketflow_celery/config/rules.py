"""The throttling rules of a task: tenant and cost of a call, worked out from its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number
from bucketflow_celery.config.arguments import arguments_of
from bucketflow_celery.config.built_in_tasks import is_built_in
from bucketflow_celery.config.choices import OnLimit
from bucketflow_celery.config.limit import Limit

__all__ = [
    "HEADER",
    "NO_RULES",
    "CostRule",
    "TaskRules",
    "TenantRule",
    "cost_of",
    "rules_of",
    "tenant_from",
    "tenant_of",
]

#: The name of an argument, a callable that takes the arguments of the call, or ``None`` for the header alone.
TenantRule: TypeAlias = "str | Callable[..., object] | None"

#: The message header that names the tenant. The publisher may set it, and the throttle never overwrites it.
HEADER = "tenant"

#: A number of tokens, the name of an argument, or a callable that takes the arguments of the call.
CostRule: TypeAlias = "float | str | Callable[..., float]"

_COST = "a number of tokens, 0 or more"


@dataclass(frozen=True, slots=True)
class TaskRules:
    """
    The options of ``throttled_task``, attached to the task.

    Attributes:
        limit: Limit of the task type, if any.
        tenant: Rule for the tenant; ``None`` for the option ``tenant`` of the throttle.
        tenant_inherits: Whether a call without a tenant has that of the task that publishes it; ``None`` for the option
            of the throttle.
        cost: Rule for the tokens that a call takes at every level.
        max_wait: Maximum total wait in seconds; ``None`` for the option of the throttle.
        on_limit: ``"retry"``, ``"hold"`` or ``"park"``; ``None`` for the option of the throttle.
    """

    limit: Limit | None = None
    tenant: TenantRule = None
    cost: CostRule = 1.0
    max_wait: float | None = None
    on_limit: OnLimit | None = None
    tenant_inherits: bool | None = None

    def check_names(self, entry: str, function: Callable[..., Any]) -> None:
        """
        Check that *function* accepts the arguments that ``tenant`` and ``cost`` name.

        Args:
            entry: Name of the task, for the error.
            function: Function of the task.

        Raises:
            ConfigError: An argument does not exist. The error names *entry*, the option and the arguments.
        """
        for option, name in (("tenant", self.tenant), ("cost", self.cost)):
            if isinstance(name, str) and not arguments_of(function).accepts(name):
                names = ", ".join(map(repr, arguments_of(function).signature.parameters)) or "none"
                raise ConfigError(f"{entry}: {option}", name, f"the name of an argument ({names}) or a callable")


NO_RULES = TaskRules()


def tenant_from(
    rule: TenantRule, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """
    Return the tenant of a call; ``None`` if it has none.

    Args:
        rule: Rule of the task or of the throttle.
        function: Function of the task, for the names of its arguments.
        args: Positional arguments as sent.
        kwargs: Keyword arguments as sent.

    Raises:
        ConfigError: The rule cannot be applied to these arguments.
    """
    if rule is None:
        return None
    tenant = _apply("tenant", rule, function, args, kwargs)
    return None if tenant is None or tenant == "" else str(tenant)


def cost_of(rule: CostRule, function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> float:
    """
    Return the tokens that a call takes; arguments as in :func:`tenant_from`.

    Raises:
        ConfigError: The rule cannot be applied to these arguments, or does not return a number >= 0.
    """
    if isinstance(rule, (int, float)):
        return rule
    return check_number("cost", _apply("cost", rule, function, args, kwargs), _COST)


def _apply(
    entry: str,
    rule: str | Callable[..., object],
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> object:
    try:
        if callable(rule):
            return rule(*args, **kwargs)
        if rule in kwargs:
            return kwargs[rule]
        known = arguments_of(function)
        # Binding the whole call costs ten times as much.
        position = known.positions.get(rule)
        if position is not None and position < len(args):
            return args[position]
        call = known.signature.bind_partial(*args, **kwargs)
        call.apply_defaults()
        return call.arguments[rule]
    except Exception as error:  # the user's callable may raise anything, and no task may be lost by that
        shown = f"{rule if isinstance(rule, str) else getattr(rule, '__name__', rule)}: {error!r}"
        raise ConfigError(entry, shown, "applicable to the arguments of the call") from error


def rules_of(task: Any) -> TaskRules:
    """Return the rules that the decorator attached to *task*, or ``NO_RULES``."""
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
    Return the tenant of a message, from its header or else its arguments; ``None`` if it has none.

    Args:
        task: Task that the message calls.
        default: Rule of the throttle, for a task without a rule. The name of an argument applies only to tasks that
            have that argument. It does not apply to Celery's own tasks: their arguments are none of the user's.
        headers: Headers of the message.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Raises:
        ConfigError: The rule cannot be applied to these arguments.
    """
    stamped = headers.get(HEADER)
    if stamped is not None:
        return str(stamped) or None
    rule = rules_of(task).tenant
    if rule is not None:
        return tenant_from(rule, task.run, args, kwargs)
    if is_built_in(task.name):
        return None
    try:
        return tenant_from(default, task.run, args, kwargs)
    except ConfigError:
        if isinstance(default, str):
            return None
        raise
