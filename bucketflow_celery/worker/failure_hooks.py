"""
The end of a task that fails without running, in the two halves of Celery's ``trace_task``.

Celery stores the result, tells chord and chain, and calls errbacks, hooks and signals in one go. Here the result is
stored first, because the message can be acknowledged then: an errback or a hook may take any time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import signals, states
from celery._state import _task_stack
from celery.app.task import Context

from bucketflow.errors import BucketflowError
from bucketflow_celery.config.exemption import exempted, has_errbacks, with_exempt_errbacks

__all__ = ["call_hooks", "info_of", "store_failure"]

logger = logging.getLogger("bucketflow_celery.worker")


def info_of(error: BucketflowError) -> ExceptionInfo:
    """Return what Celery's hooks receive as ``einfo``."""
    try:
        raise error.with_traceback(None)
    except BucketflowError:
        return ExceptionInfo()


def store_failure(request: Any, error: BucketflowError, info: ExceptionInfo) -> None:
    """
    Store *error* as the result of *request*'s task, and tell its chord and the rest of its chain.

    A chord with errbacks learns of it in :func:`call_hooks`, because Celery then calls them, too.

    Args:
        request: Celery's request.
        error: The error.
        info: See :func:`info_of`.

    Raises:
        Exception: Any error of the result backend.
    """
    context = request._context  # noqa: SLF001 - as Celery's own request does
    if not _calls_errbacks_of_chord(context):
        _mark_as_failure(request, context, error, info)
    elif request.store_errors:
        request.task.backend.store_result(request.id, error, states.FAILURE, traceback=info.traceback, request=context)


def _calls_errbacks_of_chord(context: Context) -> bool:
    steps = context.chain or ()
    return any(has_errbacks(chord) for chord in (context.chord, *(step["options"].get("chord") for step in steps)))


def _mark_as_failure(request: Any, context: Context, error: BucketflowError, info: ExceptionInfo) -> None:
    request.task.backend.mark_as_failure(
        request.id, error, info.traceback, request=context, store_result=request.store_errors, call_errbacks=False
    )


def call_hooks(request: Any, error: BucketflowError, info: ExceptionInfo) -> None:
    """
    Call the errbacks, hooks and signals of a failed task, as Celery does after its result is stored.

    One that raises is logged, and the next one follows. Arguments as for :func:`store_failure`.
    """
    task = request.task
    context = Context(vars(request._context), called_directly=False)  # noqa: SLF001 - see above
    # The limit that has failed the task must not fail the tasks that report it.
    context.errbacks = [exempted(errback) for errback in context.errbacks or ()]
    context.chord = context.chord and with_exempt_errbacks(context.chord)
    context.chain = [with_exempt_errbacks(step) for step in context.chain or ()]
    _task_stack.push(task)
    task.request_stack.push(context)
    try:
        for name, call in _hooks(request, context, error, info):
            try:
                call()
            except (Exception, SystemExit):  # whatever a user's code raises
                logger.exception("%s of task that failed without running raised: id=%s", name, request.id)
    finally:
        task.request_stack.pop()
        _task_stack.pop()


def _hooks(
    request: Any, context: Context, error: BucketflowError, info: ExceptionInfo
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Return the name and the call of each, in Celery's order."""
    task = request.task
    facts = (error, context.id, context.args, context.kwargs)
    call = {"sender": task, "task_id": context.id, "args": context.args, "kwargs": context.kwargs}
    if _calls_errbacks_of_chord(context):
        yield "errback of chord", lambda: _mark_as_failure(request, context, error, info)
    if context.errbacks:
        # Celery has no public function for this.
        yield "errback", lambda: task.backend._call_task_errbacks(context, error, info.traceback)  # noqa: SLF001
    yield "on_failure", lambda: task.on_failure(*facts, info)
    failure = {"exception": error, "traceback": error.__traceback__, "einfo": info}
    yield "task_failure", lambda: signals.task_failure.send(**call, **failure)
    yield "after_return", lambda: task.after_return(states.FAILURE, *facts, None)
    yield "task_postrun", lambda: signals.task_postrun.send(**call, task=task, retval=error, state=states.FAILURE)
