"""
Events for monitors: refusals have a group of their own, and ``task-received`` is sent once for a task that returns.

Celery's ``events.State`` makes a state of each unknown event of the group ``task``. An event ``task-refused`` would
hide the states STARTED and REVOKED of its task. Of events of any other group it keeps nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from celery import signals

from bucketflow_celery.scheduling.ticket import HEADER

__all__ = ["GROUP", "REFUSED", "ReceivedEvents", "send_refused"]

#: The group of the throttle's events.
GROUP = "throttle"
#: The event of a refusal.
REFUSED = f"{GROUP}-refused"


def send_refused(request: Any, **facts: Any) -> None:
    """
    Send the event of a refusal, unless the worker sends no events of this task.

    Args:
        request: Celery's request. Its dispatcher of events is enabled.
        facts: Fields of the event, beside ``uuid`` and ``name``.
    """
    dispatcher = request.eventer
    if not request.task.send_events:
        return
    # No groups: all of them. ``celery control`` adds the group "task" to the others, and removes it.
    groups = dispatcher.groups
    if groups and "task" not in groups:
        return
    if groups:
        groups.add(GROUP)
    if "task" in dispatcher.buffer_group and GROUP not in dispatcher.buffer_group:
        dispatcher.buffer_group = frozenset({*dispatcher.buffer_group, GROUP})  # else each one is a message
    dispatcher.send(REFUSED, uuid=request.id, name=request.name, **facts)


class ReceivedEvents:
    """
    Sends ``task-received`` for the first delivery of a task only, not for those with a ticket.

    Celery's strategies capture the dispatcher's ``send`` when they are made. It is replaced just before that.

    Args:
        consumer: Celery's ``Consumer``, whose strategies are not made yet.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._update_strategies = consumer.update_strategies
        self._returned: str | None = None  # the task that is being received, if it has a ticket
        consumer.update_strategies = self._on_update_strategies
        signals.task_received.connect(self._on_received, sender=consumer)

    def _on_update_strategies(self) -> None:
        dispatcher = self._consumer.event_dispatcher
        if dispatcher is not None and "send" not in vars(dispatcher):
            dispatcher.send = partial(self._send, dispatcher.send)
        self._update_strategies()

    def _on_received(self, request: Any, **_: Any) -> None:
        # Celery sends the signal just before the event.
        self._returned = request.id if HEADER in request.request_dict else None

    def _send(self, send: Callable[..., Any], kind: str, *args: Any, **fields: Any) -> Any:
        if kind == "task-received" and self._returned is not None and fields.get("uuid") == self._returned:
            return None
        return send(kind, *args, **fields)
