"""One run: send every order at its second, and follow what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable

from celery.utils import uuid

from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import queue_of
from bucketflow_celery.demo.records import Records
from bucketflow_celery.demo.tasks import app

__all__ = ["follow"]

#: Seconds between two looks.
TICK = 0.2

#: Seconds without any start after which what still waits is called lost.
PATIENCE = 15.0


def follow(ledger: Ledger, records: Records, show: Callable[[float], None]) -> None:
    """
    Send the orders of *ledger* and enter what becomes of them, until all have started or nothing moves any more.

    Args:
        ledger: Nothing is sent yet.
        records: What the workers report.
        show: Called after every look, with the second.
    """
    moved, before = 0.0, (-1, -1)
    while not ledger.complete:
        now = time.monotonic() - ledger.began
        _send_due(ledger, now)
        records.read_into(ledger)
        state = (len(ledger.sent), len(ledger.starts))
        if state != before:
            moved, before = now, state
        elif len(ledger.sent) == len(ledger.orders) and now - moved > PATIENCE:
            break
        show(now)
        time.sleep(TICK)


def _send_due(ledger: Ledger, now: float) -> None:
    for order in ledger.orders[len(ledger.sent) :]:
        if order.second > now:
            break
        task_id = uuid()
        # Entered before it is sent: it may start before this process goes on.
        ledger.sent[task_id] = (time.monotonic() - ledger.began, order)
        task = app.tasks[order.task]
        task.apply_async((order.tenant, order.cost), task_id=task_id, queue=queue_of(order.task))
