"""Requests of Celery without a worker: what a worker would receive, over a broker and a result backend in memory."""

from __future__ import annotations

from uuid import uuid4

from celery import Celery
from celery.worker.request import Request

__all__ = ["app_in_memory", "received", "request_of", "waiting_messages"]


def app_in_memory(**config) -> Celery:
    """Return an app with a broker and a result backend in this process. Its queue is its own."""
    app = Celery(f"app-{uuid4()}", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=f"queue-{uuid4()}", **config)
    return app


def waiting_messages(app: Celery) -> list:
    """Take all messages out of the queue of *app*."""
    messages = []
    with app.connection() as connection, connection.channel() as channel:
        queue = app.amqp.queues[app.conf.task_default_queue](channel)
        queue.declare()
        while (message := queue.get(accept={"json"})) is not None:
            message.ack()
            messages.append(message)
    return messages


def received(app: Celery, signature, **options) -> Request:
    """Publish *signature* with *options* of ``apply_async``, and return the request that a worker would make of it."""
    signature.apply_async(**options)
    [message] = waiting_messages(app)
    return request_of(app, message)


def request_of(app: Celery, message) -> Request:
    """Return the request that a worker would make of *message*."""
    task = app.tasks[message.headers["task"]]
    return Request(message, app=app, task=task, hostname="worker", on_ack=noop, on_reject=noop)


def noop(*_args):
    """Ignore the end of a message that no broker waits for."""
