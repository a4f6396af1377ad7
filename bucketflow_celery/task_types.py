"""What ``throttled_task`` returns, for type checkers: a task of Celery that keeps the signature of its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from celery import Task

__all__ = ["BoundTaskDecorator", "TaskDecorator", "ThrottledTask"]

P = ParamSpec("P")
R = TypeVar("R")
TaskT = TypeVar("TaskT", bound=Task)


class ThrottledTask(Task, Generic[P, R]):  # type: ignore[misc] # Celery has no types of its own
    """A task whose calls and messages take the arguments of its function. At run time it is a plain Celery task."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        raise NotImplementedError

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Send a message with these arguments."""
        raise NotImplementedError

    def s(self, *args: Any, **kwargs: Any) -> Any:
        """Return a signature; it may lack arguments that a chain adds."""
        raise NotImplementedError

    def si(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Return an immutable signature."""
        raise NotImplementedError

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Send a message with the options of Celery."""
        raise NotImplementedError


class TaskDecorator(Protocol):
    """Makes a function a task, and gives a ``Task`` class its rules."""

    @overload
    def __call__(self, function: type[TaskT], /) -> type[TaskT]: ...  # type: ignore[overload-overlap] # Task is Any
    @overload
    def __call__(self, function: Callable[P, R], /) -> ThrottledTask[P, R]: ...


class BoundTaskDecorator(Protocol):
    """Makes a function a task that passes itself as the first argument."""

    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> ThrottledTask[P, R]:
        """Make *function* a task."""
