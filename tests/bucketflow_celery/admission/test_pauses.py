"""Paused tenants and task types that do not park: what they cost, and how they start again."""

from __future__ import annotations

from itertools import pairwise

import pytest
from simulation import Fleet, Job

from bucketflow_celery import Limit
from bucketflow_celery.admission.paused_countdown import LONGEST, SHORTEST, PausedCountdown

HOUR = 3600.0


def fleet_with_backlog(count=300, *, on_limit="retry", rate=20, **options):
    """Return a fleet in which *tenant a* is paused and has *count* tasks, and its jobs."""
    fleet = Fleet({"tenants": {"*": Limit(2, rate)}}, workers=2, max_countdown=720.0, read_seconds=0.004, **options)
    fleet.store.pause("tenant:a", paused=True)
    return fleet, [fleet.send(Job(at=0.01, tenant="a", on_limit=on_limit)) for _ in range(count)]


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_an_hour_of_a_pause_costs_each_task_a_few_deliveries_and_each_worker_two_calls_a_second(on_limit):
    fleet, jobs = fleet_with_backlog(on_limit=on_limit)
    fleet.run(HOUR, max_events=2_000_000)
    assert not fleet.starts()
    assert sum(job.deliveries for job in jobs) <= len(jobs) * 12
    assert fleet.calls() <= 2 * 2.2 * HOUR


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
@pytest.mark.parametrize("paused_for", [10.0, HOUR])
def test_paused_tasks_start_within_a_second_of_the_resume_and_at_the_full_rate(on_limit, paused_for):
    fleet, jobs = fleet_with_backlog(on_limit=on_limit)
    fleet.at(paused_for, lambda: fleet.store.pause("tenant:a", paused=False))
    fleet.run(paused_for + 1.0, max_events=2_000_000)
    assert fleet.starts()
    fleet.run(paused_for + 11.0, max_events=2_000_000)
    assert len(fleet.starts()) >= 0.95 * 10 * 20
    fleet.run_out(paused_for + 60)
    assert [len(job.starts) for job in jobs] == [1] * len(jobs)


def test_a_copy_that_a_worker_receives_only_after_the_resume_does_not_wait_for_its_eta():
    fleet, jobs = fleet_with_backlog(50)
    fleet.at(0.1, lambda: fleet.store.pause("tenant:a", paused=False))  # most copies stand in the queue
    fleet.run(30.0)
    assert [len(job.starts) for job in jobs] == [1] * len(jobs)


def test_the_end_of_one_pause_starts_no_task_of_another():
    fleet, jobs = fleet_with_backlog(20)
    fleet.store.pause("tenant:b", paused=True)
    others = [fleet.send(Job(at=0.01, tenant="b")) for _ in range(20)]
    fleet.at(60.0, lambda: fleet.store.pause("tenant:a", paused=False))
    fleet.run(120.0)
    assert all(job.starts for job in jobs)
    assert not any(job.starts for job in others)
    assert max(job.deliveries for job in others) == 2


def test_an_expired_task_of_a_paused_tenant_ends_soon_after_its_expiry():
    fleet, _ = fleet_with_backlog(0)
    job = fleet.send(Job(at=0.01, tenant="a", expires_at=30.0))
    fleet.run(32.0)
    assert job.gone == 1


@pytest.mark.parametrize("name", ["all:", "queue:q"])
def test_a_pause_of_a_queue_keeps_its_tasks_in_the_broker(name):
    fleet = Fleet({"tenants": {"*": Limit(2, 20)}}, workers=2, read_seconds=0.004)
    fleet.store.pause(name, paused=True)
    jobs = [fleet.send(Job(at=0.01, tenant="a")) for _ in range(300)]
    fleet.at(HOUR, lambda: fleet.store.pause(name, paused=False))
    fleet.run(HOUR, max_events=2_000_000)
    assert len(fleet.queues["q"]) >= 300 - 2 * 16
    assert sum(job.deliveries for job in jobs) <= 2 * 16 * (HOUR / 600 + 1)
    fleet.run(HOUR + 1.5)
    assert fleet.starts()


@pytest.mark.parametrize(
    ("ends_early", "waited", "longest"),
    [(True, 0.0, 720.0), (True, HOUR, 720.0), (False, 0.0, SHORTEST), (False, 20.0, 20.0), (False, HOUR, LONGEST)],
)
def test_countdowns_are_spread_between_half_and_all_of_the_longest(ends_early, waited, longest):
    countdown = PausedCountdown(720.0, ends_early=ends_early)
    found = sorted(countdown.after(waited) for _ in range(100))
    assert longest / 2 <= found[0] < 0.52 * longest
    assert 0.98 * longest < found[-1] <= longest
    assert max(second - first for first, second in pairwise(found)) < 0.02 * longest


def test_no_countdown_is_longer_than_the_option_allows():
    countdown = PausedCountdown(3.0, ends_early=False)
    assert max(countdown.after(HOUR) for _ in range(100)) <= 3.0
