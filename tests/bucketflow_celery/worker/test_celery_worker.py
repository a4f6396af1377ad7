"""What the worker does for the gate, where Celery or what it talks to fails."""

from __future__ import annotations

from types import SimpleNamespace

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.worker.celery_worker import CeleryWorker


class ExpiredWhileTheResultBackendIsAway:
    id = "42"

    def revoked(self):
        raise OSError("the result backend is away")


def test_a_revoked_task_whose_end_cannot_be_stored_stops_nobody_else_and_does_not_run(caplog):
    waker = SimpleNamespace(timer=None, call_soon=None)
    slots = SimpleNamespace(free=None, when_free=None)
    host = CeleryWorker(None, slots, SimpleNamespace(widen=None, narrow=None), None, waker)
    assert host.is_revoked_or_expired(PendingTask(ExpiredWhileTheResultBackendIsAway(), "q", 0.0))
    assert "end of task cannot be stored: id=42" in caplog.text
