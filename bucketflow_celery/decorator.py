"""``throttled_task``: the decorator that gives a Celery task its limit, tenant and cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, overload

from celery import Celery, Task, shared_task

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number
from bucketflow_celery.config.built_in_tasks import is_built_in
from bucketflow_celery.config.choices import OnLimit, check_choice
from bucketflow_celery.config.limit import Limit, parse_limit
from bucketflow_celery.config.near_miss import nearest
from bucketflow_celery.config.rules import CostRule, TaskRules, TenantRule

if TYPE_CHECKING:
    from bucketflow_celery.task_types import BoundTaskDecorator, TaskDecorator, ThrottledTask

__all__ = ["throttled_task"]

#: The options of :func:`throttled_task`. All others are Celery's.
_OPTIONS = (*(field.name for field in fields(TaskRules) if field.name != "limit"), "app", "rate", "capacity", "shared")

P = ParamSpec("P")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound=Task)


@overload
def throttled_task(function: type[TaskT], /) -> type[TaskT]: ...  # type: ignore[overload-overlap] # Task is Any


@overload
def throttled_task(function: Callable[P, R], /) -> ThrottledTask[P, R]: ...


@overload
def throttled_task(
    *,
    bind: Literal[False] = ...,
    app: Celery | None = ...,
    rate: str | Limit | None = ...,
    capacity: float | None = ...,
    shared: bool = ...,
    tenant: TenantRule = ...,
    tenant_inherits: bool | None = ...,
    cost: CostRule = ...,
    max_wait: float | None = ...,
    on_limit: OnLimit | None = ...,
    **options: Any,
) -> TaskDecorator: ...


@overload
def throttled_task(
    *,
    bind: Literal[True],
    app: Celery | None = ...,
    rate: str | Limit | None = ...,
    capacity: float | None = ...,
    shared: bool = ...,
    tenant: TenantRule = ...,
    tenant_inherits: bool | None = ...,
    cost: CostRule = ...,
    max_wait: float | None = ...,
    on_limit: OnLimit | None = ...,
    **options: Any,
) -> BoundTaskDecorator: ...


def throttled_task(  # noqa: PLR0913 - each is one option of a task
    function: Any = None,
    /,
    *,
    app: Celery | None = None,
    rate: str | Limit | None = None,
    capacity: float | None = None,
    shared: bool = False,
    tenant: TenantRule = None,
    tenant_inherits: bool | None = None,
    cost: CostRule = 1.0,
    max_wait: float | None = None,
    on_limit: OnLimit | None = None,
    **options: Any,
) -> Any:
    """
    Make a function a Celery task with a limit, a tenant and a cost of its own.

    Does no I/O. Without a :class:`~bucketflow_celery.Throttle` on its app, the task runs unthrottled.

    Args:
        function: The function, if the decorator is used without arguments. A ``Task`` class gets the rules and is
            returned, to be registered as usual.
        app: The app that the task belongs to. Without it the task is a ``shared_task``.
        rate: The task's own limit: ``"5/s"``, ``"30/m"``, ... or a ``Limit``. An entry for this task in the table of
            limits takes precedence.
        capacity: Maximum tokens in that limit's bucket. By default the tokens of one second, but at least 1.
        shared: Use one bucket for the whole fleet, instead of one for each queue and tenant.
        tenant: The tenant of a call: the name of an argument, or a callable that gets the call's arguments and returns
            the tenant or ``None``.
        tenant_inherits: Whether a call without a tenant has that of the task that publishes it; ``None`` for the option
            of the ``Throttle``.
        cost: Tokens that a call takes at every level, >= 0: a number, the name of an argument, or a callable like
            *tenant*.
        max_wait: Maximum total wait of a call in seconds, > 0. A call that would wait longer fails with
            ``ThrottleTimeout``.
        on_limit: ``"retry"``, ``"hold"`` or ``"park"``, as in :class:`~bucketflow_celery.Throttle`.
        options: Options of ``app.task``.

    Returns:
        The task, or the decorator if *function* is not given.

    Raises:
        ConfigError: An option is invalid. The error names the option, its value and what was expected.
    """
    rules = TaskRules(
        limit=_limit(rate, capacity, shared=shared),
        tenant=tenant,
        cost=cost if isinstance(cost, str) or callable(cost) else _cost(cost),
        max_wait=None if max_wait is None else check_number("max_wait", max_wait, "seconds above 0", above=True),
        on_limit=on_limit,
        tenant_inherits=tenant_inherits,
    )
    if tenant is not None and not callable(tenant) and not (isinstance(tenant, str) and tenant):
        raise ConfigError("tenant", tenant, "the name of an argument or a callable")
    if tenant_inherits not in (None, True, False):
        raise ConfigError("tenant_inherits", tenant_inherits, "True or False, or None for the option of the throttle")
    if on_limit is not None:
        check_choice("on_limit", on_limit, OnLimit)

    if app is not None and not isinstance(app, Celery):
        raise ConfigError("app", app, "a Celery app, or None for a shared task")
    _check_options(app, options)

    def decorate(function: Any) -> Any:
        if not callable(function):
            raise ConfigError("function", function, "a function or a Task class; options go by name")
        if _is_task_class(function):
            if app is not None or options:
                given = ", ".join(sorted({"app", *options} if app is not None else options))
                raise ConfigError("function", function, f"a Task class to be registered, without the options {given}")
            rules.check_names(function.__name__, function.run)
            function.bucketflow = rules
            return function
        rules.check_names(getattr(function, "__name__", repr(function)), function)
        task = shared_task if app is None else app.task
        return task(bucketflow=rules, **options)(function)

    return decorate if function is None else decorate(function)


def _check_options(app: Celery | None, options: Mapping[str, Any]) -> None:
    """Check that no option of Celery's, or of the user's base class, is a misspelt one of ours."""
    base = options.get("base") or (Task if app is None else app.Task)
    for option, value in options.items():
        meant = None if hasattr(base, option) else nearest(option, _OPTIONS)
        if meant is not None:
            raise ConfigError(option, value, f"the option {meant}, or another name if {meant} is not meant")
    name = options.get("name")
    if isinstance(name, str) and is_built_in(name):
        raise ConfigError("name", name, "a name outside of celery.*, Celery's own tasks, which are free")


def _is_task_class(function: Any) -> bool:
    return isinstance(function, type) and issubclass(function, Task)


def _limit(rate: str | Limit | None, capacity: float | None, *, shared: bool) -> Limit | None:
    if not isinstance(rate, str):
        for option, value in (("capacity", capacity), ("shared", shared or None)):
            if value is not None:
                raise ConfigError(option, value, 'to stand beside a rate such as "5/s"')
        return parse_limit("rate", rate)
    return parse_limit("rate", {"rate": rate, "capacity": capacity, "shared": shared})


def _cost(cost: object) -> float:
    return check_number("cost", cost, "a number of tokens, 0 or more; an argument's name; or a callable")
