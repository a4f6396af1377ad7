"""Flush of a prefork pool: on stand-ins for pool and request, with billiard's own jobs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from billiard.pool import ApplyResult

from bucketflow_celery.worker.pool_flush import PoolFlush


class Request:
    """A request, parked or from the broker."""

    def __init__(self, *, is_parked):
        self.id, self.is_parked, self.acknowledged, self.connection_errors = "id", is_parked, False, ()
        self.returns = []

    def on_accepted(self, _pid, _time_accepted):
        self.acknowledged = True

    def _on_reject(self, _logger, _errors, requeue):
        self.returns.append(requeue)


class Pool:
    """A pool whose ``flush`` forgets the jobs that no child has accepted, as Celery's does."""

    uses_semaphore = True

    def __init__(self):
        self._pool = SimpleNamespace(_cache={})
        self.flushed = 0

    def flush(self):
        self.flushed += 1
        for job in list(self._pool._cache.values()):
            if not job._accepted:
                job.discard()

    def job(self, request):
        return ApplyResult(self._pool._cache, None, accept_callback=request.on_accepted)


def child(*, is_alive):
    return SimpleNamespace(_is_alive=lambda: is_alive)


@pytest.mark.parametrize(
    ("is_parked", "sent_to", "accepted", "kept", "returns"),
    [
        (True, None, False, False, [True]),
        (True, child(is_alive=True), False, True, []),
        (True, child(is_alive=False), False, False, [True]),
        (True, child(is_alive=True), True, True, []),
        (False, None, False, False, []),
        (False, child(is_alive=True), False, False, []),
    ],
    ids=["waits", "sent", "sent to a dead child", "running", "of the broker", "of the broker, sent"],
)
def test_a_parked_task_is_kept_if_a_child_will_run_it_and_returns_if_not(is_parked, sent_to, accepted, kept, returns):
    pool, request = Pool(), Request(is_parked=is_parked)
    flush = PoolFlush(pool)
    flush.connect()
    flush.connect()  # again with each connection to the broker
    job = pool.job(request)
    job._write_to = sent_to
    if accepted:
        job._ack(None, 0.0, 1, None)

    pool.flush()

    assert pool.flushed == 1
    assert (job._job in pool._pool._cache) == kept
    assert request.returns == returns
    assert job._accepted == accepted
    assert request.acknowledged == (accepted or bool(returns))


@pytest.mark.parametrize(("uses_semaphore", "flush"), [(False, print), (True, None)], ids=["threads", "blocking"])
def test_other_pools_and_those_without_a_flush_are_left_alone(uses_semaphore, flush):
    pool = SimpleNamespace(uses_semaphore=uses_semaphore, flush=flush)
    PoolFlush(pool).connect()
    assert pool.flush is flush
