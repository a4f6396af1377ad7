"""The Celery worker where Celery or its result backend fails."""

from __future__ import annotations

from types import SimpleNamespace

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.messages.republisher import Republisher
from bucketflow_celery.worker.celery_worker import CeleryWorker


class ExpiredWhileTheResultBackendIsUnavailable:
    id = "42"

    def revoked(self):
        raise OSError("the result backend is unavailable")


def test_a_task_that_expires_while_its_result_cannot_be_stored_does_not_run_and_raises_nothing(caplog):
    waker = SimpleNamespace(timer=None, call_soon=None)
    slots = SimpleNamespace(free=None, when_free=None)
    worker = CeleryWorker(
        None,
        slots,
        SimpleNamespace(widen=None, narrow=None, can_hold_many=True),
        Republisher(None, delayed=False),
        waker,
    )
    assert worker.is_revoked_or_expired(PendingTask(ExpiredWhileTheResultBackendIsUnavailable(), "q", 0.0))
    assert "end of task cannot be stored: id=42" in caplog.text
