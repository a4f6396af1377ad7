"""Purges in simulated fleets: all matching tasks that exist at that instant end, wherever they wait, and no others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import Fleet, Job

from bucketflow.testing import worst_excess
from bucketflow_celery import Limit
from bucketflow_celery.operations.purge import purge_tasks
from bucketflow_celery.store.active_limits import VERSION_CHECK_INTERVAL

MODES = pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
LIMITS = {"tenants": {"*": Limit(1, 1)}}


def play(jobs, *purges, limits=LIMITS, until=100.0, before=None, **options):
    """Run *jobs*, and at each of *purges* (an instant, a queue, a tenant and a task type) the purge."""
    fleet = Fleet(limits, **options)
    for job in jobs:
        fleet.send(job)
    for at, *which in purges:
        fleet.at(at, lambda which=which: purge_tasks(fleet.store, *which))
        for worker in fleet.workers:  # as a worker does that has nothing else to do
            fleet.at(at + VERSION_CHECK_INTERVAL, lambda worker=worker: worker.is_up() and worker.admission.run())
    if before is not None:
        before(fleet)
    fleet.run(until)
    assert not fleet.more_than_once()
    for level, starts in fleet.starts_by_bucket().values():
        assert worst_excess(starts, level.limit) < 1e-6
    return fleet


def ended(jobs):
    """Return the jobs that were purged, or deleted from a backlog."""
    return [job for job in jobs if not job.starts and not job.errors]


def backlog(on_limit, count=60, **options):
    return [Job(tenant="a", on_limit=on_limit, **options) for _ in range(count)]


@MODES
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("read_seconds", [0.0, 0.004])
def test_no_task_of_a_purged_tenant_starts_and_no_other_is_affected(on_limit, workers, read_seconds):
    purged = backlog(on_limit)
    others = [Job(tenant="b", on_limit=on_limit) for _ in range(20)]
    options = {"workers": workers, "read_seconds": read_seconds, "parks": on_limit == "park"}
    fleet = play([*purged, *others], (5.5, "q", "a", None), **options)

    assert max(job.starts[0] for job in purged if job.starts) <= 5.5
    assert len(ended(purged)) == 60 - 6
    assert [len(job.starts) for job in others] == [1] * 20
    if on_limit != "park":
        assert sum(job.purged for job in purged) == sum(worker.stats.purged for worker in fleet.workers) == 54


@MODES
def test_tasks_that_are_published_after_a_purge_start_and_do_not_wait_for_the_purged_ones(on_limit):
    purged, later = backlog(on_limit), [Job(5.51, tenant="a", on_limit=on_limit) for _ in range(3)]
    play([*purged, *later], (5.5, "q", "a", None), parks=on_limit == "park")

    assert len(ended(purged)) == 54
    assert [job.starts[0] for job in later] == pytest.approx([6, 7, 8], abs=0.6)


FILTERS = [
    # tenant, task: of the purge; then which of four jobs (tenant, task) remain
    (None, None, []),
    ("a", None, [(None, "f"), ("b", "f")]),
    ("", None, [("a", "f"), ("a", "g"), ("b", "f")]),
    (None, "f", [("a", "g")]),
    ("a", "f", [(None, "f"), ("a", "g"), ("b", "f")]),
    ("unknown", None, [(None, "f"), ("a", "f"), ("a", "g"), ("b", "f")]),
]


@MODES
@pytest.mark.parametrize(("tenant", "task", "remaining"), FILTERS)
def test_a_purge_ends_the_tasks_that_match_queue_tenant_and_task_type(on_limit, tenant, task, remaining):
    kinds = [(None, "f"), ("a", "f"), ("a", "g"), ("b", "f")]
    spent = [Job(queue=queue, tenant=name, name=kind) for queue in "qr" for name, kind in kinds]
    jobs = [Job(0.5, queue, name, kind, on_limit=on_limit) for queue in "qr" for name, kind in kinds]
    limits = {"tasks": {"*": Limit(1, 0.1)}}
    play([*spent, *jobs], (1.0, "q", tenant, task), limits=limits, parks=on_limit == "park")

    started = [(job.queue, job.tenant, job.name) for job in jobs if job.starts]
    assert started == [*(("q", *kind) for kind in remaining), *(("r", *kind) for kind in kinds)]


@pytest.mark.parametrize("on_limit", ["retry", "park"])
def test_a_worker_that_starts_after_a_purge_honours_it(on_limit):
    jobs = backlog(on_limit)

    def before(fleet):
        fleet.at(5.2, fleet.workers[0].close if on_limit == "retry" else lambda: fleet.workers[0].kill(0.8))
        if on_limit == "retry":
            fleet.at(6.0, lambda: (fleet.workers[0]._start_process(), fleet.workers[0].open(), fleet.deliver()))

    play(jobs, (5.5, "q", None, None), parks=on_limit == "park", before=before)

    assert max(job.starts[0] for job in jobs if job.starts) <= 5.5


def test_a_copy_that_is_delivered_long_after_a_purge_ends():
    jobs = backlog("retry")
    play(jobs, (5.5, "q", "a", None), lateness=lambda number: 30.0 if number % 2 else 0.0)

    assert max(job.starts[0] for job in jobs if job.starts) <= 5.5
    assert sum(job.purged for job in jobs) == len(jobs) - sum(len(job.starts) for job in jobs)


@MODES
@given(
    sent=st.lists(
        st.tuples(st.integers(0, 40).map(lambda half: half / 2), st.sampled_from(["a", "b", None])), max_size=40
    ),
    purges=st.lists(
        st.tuples(
            st.integers(0, 20).map(lambda at: at + 0.25), st.just("q"), st.sampled_from(["a", "b", "", None]), st.none()
        ),
        max_size=3,
    ),
    workers=st.integers(1, 2),
)
def test_every_task_starts_or_is_purged_by_a_later_purge(on_limit, sent, purges, workers):
    jobs = [Job(at, tenant=tenant, on_limit=on_limit) for at, tenant in sent]
    play(jobs, *purges, workers=workers, parks=on_limit == "park")

    for job in jobs:
        instants = [at for at, _, tenant, _ in purges if at > job.at and tenant in (None, job.tenant or "")]
        assert len(job.starts) == 1 or instants, "it was purged by none, and did not start"
        assert not job.starts or job.starts[0] <= min(instants, default=100.0)
