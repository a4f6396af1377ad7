"""The gate in a simulated fleet: each test is a workload, and what it came to."""

from __future__ import annotations

import pytest
from simulation import Fleet, Job

from bucketflow.errors import CostExceedsCapacity
from bucketflow.testing import worst_excess
from bucketflow_celery import Limit, ThrottleTimeout


def play(limits, jobs, until=4000.0, **options):
    fleet = Fleet(limits, **options)
    for job in jobs:
        fleet.send(job)
    fleet.run(until)
    return fleet


def assert_all_ran_once(fleet):
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert [len(job.starts) for job in fleet.jobs] == [1] * len(fleet.jobs)


def assert_no_window_over(fleet):
    for key, (level, starts) in fleet.starts_by_bucket().items():
        assert worst_excess(starts, level.limit) < 1e-6 * max(1, level.limit.fill_rate), key


# Slots


@pytest.mark.parametrize("path", ["limited", "unlimited"])
def test_never_more_tasks_than_slots_also_when_the_store_is_away_and_all_are_admitted(path):
    limits = {"queues": {"q": "1000/s"}} if path == "limited" else {}
    jobs = [Job(duration=1.0) for _ in range(50)]
    fleet = play(limits, jobs, slots=3, prefetch=50, store_down=[(0, 20)], on_store_error="admit")
    assert_all_ran_once(fleet)
    # 3 at a time, 1 s each; simulation.py raises on a fourth.
    assert fleet.starts()[-1][0] == pytest.approx(16, abs=0.1)


# Tickets


def all_at_once_after(seconds):
    """Return the lateness of a fleet that was away: whatever was due meanwhile comes in the same instant."""
    return lambda number: max(0.0, seconds - number * 0.1)


def test_tickets_that_all_come_late_never_burst_and_ask_once_a_token():
    jobs = [Job(at=number * 1e-4, tenant="a") for number in range(300)]
    fleet = play({"tenants": {"*": Limit(2, 10)}}, jobs, workers=2, lateness=all_at_once_after(20))
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert max(job.deliveries for job in jobs) == 2
    # Two a task, and the head of each worker's line once a token: not everybody who waits, each time one comes.
    assert fleet.calls() < 4 * len(jobs)


# Limits that change


def test_a_lifted_limit_lets_those_who_waited_start():
    fleet = Fleet({"queues": {"q": "1/s"}}, slots=4)
    for _ in range(30):
        fleet.send(Job())
    fleet.at(5.0, lambda: fleet.store.set_limits({}))
    fleet.run(60)
    assert_all_ran_once(fleet)
    assert fleet.starts()[-1][0] < 8


def test_a_task_that_new_limits_make_impossible_fails_once_and_never_runs():
    fleet = Fleet({"queues": {"q": Limit(100, 1)}}, slots=1, prefetch=50)
    jobs = [fleet.send(Job(cost=3, duration=1)) for _ in range(20)]
    fleet.at(4.5, lambda: fleet.store.set_limits({"queues": {"q": Limit(2, 100)}}))
    fleet.run(200)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {CostExceedsCapacity}
    assert 0 < sum(bool(job.starts) for job in jobs) < 20


def test_new_limits_keep_the_order_of_a_line():
    fleet = Fleet({"queues": {"q": "2/s"}}, slots=4)
    jobs = [fleet.send(Job()) for _ in range(30)]
    fleet.at(3.3, lambda: fleet.store.set_limits({"queues": {"q": "3/s"}}))
    fleet.run(60)
    assert_all_ran_once(fleet)
    assert [job for _, job in fleet.starts()] == jobs


# Giving up


@pytest.mark.parametrize("level", ["queues", "tenants"])
@pytest.mark.parametrize("max_wait", [0.3, 3])
def test_those_who_give_up_leave_no_place_empty_behind_them(level, max_wait):
    jobs = [Job(at=number / 20, tenant="a", max_wait=max_wait) for number in range(400)]
    fleet = play({level: {"*": Limit(1, 10)}}, jobs)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {ThrottleTimeout}
    # Twice as many as may start keep coming for 20 s.
    assert sum(at <= 20 for at, _ in fleet.starts()) >= 0.99 * 20 * 10
    assert max(at - job.at for at, job in fleet.starts()) <= max_wait + 0.05
