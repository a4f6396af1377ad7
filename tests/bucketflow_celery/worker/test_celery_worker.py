"""The Celery worker where Celery or its result backend fails."""

from __future__ import annotations

from types import SimpleNamespace

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.policy import ThrottlePolicy
from bucketflow_celery.worker.celery_worker import CeleryWorker


class ExpiredWhileTheResultBackendIsUnavailable:
    id = "42"

    def revoked(self):
        raise OSError("the result backend is unavailable")


def test_a_task_that_expires_while_its_result_cannot_be_stored_does_not_run_and_raises_nothing(caplog):
    slots = SimpleNamespace(free=None, when_free=None)
    worker = CeleryWorker(None, slots, SimpleNamespace(widen=None, narrow=None), None, None)
    assert worker.is_revoked_or_expired(
        PendingTask(ExpiredWhileTheResultBackendIsUnavailable(), "q", ThrottlePolicy(()), 0.0)
    )
    assert "the end of 42 could not be stored" in caplog.text
