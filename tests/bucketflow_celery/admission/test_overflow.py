"""The bound on what a worker holds under ``on_limit="hold"``: memory, shares, order, and the use of the limits."""

from __future__ import annotations

import pytest
from simulation import Fleet, Job

from bucketflow.testing import worst_excess
from bucketflow_celery import Limit
from bucketflow_celery.admission.hold_queues import HoldQueue
from bucketflow_celery.admission.overflow import take_place
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy

READ = 0.004
PREFETCH = 16
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))


def fleet_of(rate, *, limit=50, **options):
    return Fleet({"tenants": {"*": Limit(2, rate)}}, hold_limit=limit, prefetch=PREFETCH, read_seconds=READ, **options)


def send(fleet, number, tenant="a", **facts):
    return [fleet.send(Job(tenant=tenant, on_limit="hold", **facts)) for _ in range(number)]


def run_and_watch(fleet, until):
    """Run *fleet*; return the most messages that a worker held for its levels, and that it had in all."""
    held = unacknowledged = 0
    while fleet.now < until:
        fleet.run(fleet.now + 0.5, max_events=2_000_000)
        for worker in fleet.workers:
            held = max(held, sum(level is not None for level in worker.held.values()))
            unacknowledged = max(unacknowledged, worker.unacknowledged)
    return held, unacknowledged


@pytest.mark.parametrize("tenants", [1, 3, 100])
def test_a_worker_holds_no_more_than_its_limit_and_the_broker_keeps_the_rest(tenants):
    fleet = fleet_of(1)
    jobs = [job for number in range(tenants) for job in send(fleet, 600 // tenants, f"t{number}")]
    held, unacknowledged = run_and_watch(fleet, 30)
    assert held <= 50
    assert unacknowledged <= 50 + PREFETCH
    assert not [job for job in jobs if len(job.starts) > 1]


def test_one_tenant_leaves_room_for_others():
    fleet = fleet_of(1)
    send(fleet, 600)
    held, _ = run_and_watch(fleet, 30)
    assert held <= 25


def test_a_worker_that_comes_later_has_its_share():
    fleet = fleet_of(1, workers=2)
    fleet.workers[1].close()
    send(fleet, 600)
    fleet.run(20, max_events=2_000_000)
    assert len(fleet.workers[0].held) >= 20
    fleet.workers[1].open()
    fleet.deliver()
    fleet.run(30, max_events=2_000_000)
    assert len(fleet.workers[1].held) >= 20


@pytest.mark.parametrize("workers", [1, 2])
def test_other_tenants_behind_a_backlog_wait_no_longer_than_it_takes_to_read_it(workers):
    fleet = fleet_of(1, workers=workers)
    send(fleet, 1000)
    others = [job for number in range(20) for job in send(fleet, 1, f"t{number}")]
    late = [job for number in range(20) for job in send(fleet, 1, f"u{number}", at=60.0)]
    fleet.run(90, max_events=2_000_000)
    assert max(job.starts[0] for job in others) <= 1100 * READ
    # Behind messages that were sent back already: a hundred of them a second and worker.
    assert max(job.starts[0] for job in late) <= 60 + 1000 / 100 + 2


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "rate", "limit"),
    [(600, 5, 200), (3000, 50, 200), (3000, 100, 200), (100, 5, 10), (300, 5, 4), (1000, 20, 10), (1000, 50, 20)],
)
def test_the_limit_is_never_exceeded_and_fully_used(workers, number, rate, limit):
    fleet = fleet_of(rate, limit=limit, workers=workers)
    send(fleet, number)
    seconds = 30
    run_and_watch(fleet, seconds)
    starts = fleet.starts()
    assert worst_excess([(at, job.cost) for at, job in starts], Limit(2, rate)) < 1e-3
    assert len(starts) >= 0.97 * min(number, 2 + seconds * rate)


@pytest.mark.parametrize(("workers", "rate", "displacement"), [(1, 5, 1), (2, 5, 5), (1, 20, 20)])
def test_tasks_start_about_in_their_order_although_most_of_them_wait_in_the_broker(workers, rate, displacement):
    fleet = fleet_of(rate, limit=200, workers=workers)
    jobs = send(fleet, 600)
    fleet.run(600 / rate + 5, max_events=2_000_000)
    places = {job: number for number, job in enumerate(jobs)}
    started = [places[job] for _, job in fleet.starts()]
    assert len(started) == 600
    assert sum(abs(place - number) for number, place in enumerate(started)) <= 600 * displacement


def test_every_task_of_a_backlog_runs_once():
    fleet = fleet_of(20, workers=2)
    jobs = [*send(fleet, 300), *send(fleet, 300, "b"), *send(fleet, 100, "c", at=5.0)]
    fleet.run(60, max_events=2_000_000)
    assert [len(job.starts) for job in jobs] == [1] * len(jobs)


def test_a_backlog_beyond_the_bound_costs_a_hundred_publishes_a_second_and_worker_at_most():
    fleet = fleet_of(1)
    jobs = send(fleet, 2000)
    fleet.run(30, max_events=2_000_000)  # each has made its first trip
    before = sum(job.deferrals for job in jobs)
    fleet.run(60, max_events=2_000_000)
    assert sum(job.deferrals for job in jobs) - before <= 30 * 101


def test_few_tasks_beyond_the_bound_make_a_trip_in_two_seconds():
    fleet = fleet_of(0.5, limit=4)
    jobs = send(fleet, 40)
    fleet.run(120, max_events=2_000_000)
    assert max(job.deferrals for job in jobs) <= 120 / 2 + 1


def test_slow_limits_hold_only_what_is_due_before_max_hold():
    fleet = fleet_of(0.1, limit=1000, max_hold=600.0)
    jobs = send(fleet, 100)
    held, _ = run_and_watch(fleet, 60)
    assert held <= 600 * 0.1
    fleet.run(1100, max_events=4_000_000)
    assert len(fleet.starts()) >= 100, "none has lost its turn"
    assert all(len(job.starts) == 1 for job in jobs)


def test_a_task_beyond_the_bound_fails_at_once_if_its_wait_would_exceed_max_wait():
    fleet = fleet_of(1, limit=40)
    jobs = send(fleet, 100, max_wait=10.0)
    fleet.run(5)
    assert sum(bool(job.errors) for job in jobs) >= 85
    fleet.run(60)
    assert all(job.outcomes == 1 for job in jobs)


def test_an_expired_or_revoked_task_beyond_the_bound_ends_on_its_next_trip():
    fleet = fleet_of(0.1, limit=4)
    jobs = [*send(fleet, 20, expires_at=20.0), *send(fleet, 20, revoked_at=20.0)]
    fleet.run(40)
    assert sum(job.gone for job in jobs) >= 36 - 4
    assert all(job.outcomes <= 1 for job in jobs)


def test_a_queue_limit_does_not_let_the_bound_be_passed():
    fleet = Fleet(
        {"queues": {"q": Limit(5, 20)}, "tenants": {"*": Limit(1, 1)}},
        hold_limit=30,
        prefetch=PREFETCH,
        read_seconds=READ,
    )
    jobs = send(fleet, 500)
    others = send(fleet, 20, "b")
    held, _ = run_and_watch(fleet, 60)
    assert held <= 30
    assert len(fleet.starts()) >= 60 * 1 * 2 * 0.5
    assert any(job.starts for job in others)
    assert all(job.outcomes <= 1 for job in jobs)


def test_tasks_of_the_other_modes_are_not_bounded():
    fleet = fleet_of(20, limit=10)
    jobs = [fleet.send(Job(tenant="a")) for _ in range(300)]
    fleet.run(60, max_events=2_000_000)
    assert [len(job.starts) for job in jobs] == [1] * len(jobs)
    assert max(job.deliveries for job in jobs) <= 2


@pytest.mark.parametrize("rate", [10, 50])
def test_where_the_broker_keeps_deferred_tasks_they_come_back_in_their_turn(rate):
    fleet = Fleet({"tenants": {"*": Limit(2, rate)}}, hold_limit=8, prefetch=PREFETCH)
    for worker in fleet.workers:
        worker.keeps_deferred = False
    jobs = send(fleet, 200)
    held, _ = run_and_watch(fleet, 30)
    assert held <= 8
    assert [len(job.starts) for job in jobs] == [1] * len(jobs)
    assert fleet.starts()[-1][0] <= 1.05 * 198 / rate
    assert max(job.deliveries for job in jobs) <= 3


# Places


def waiting(since, *, cost=1.0, rank=0, retry_at=0.0, reservation=None):
    task = PendingTask(object(), "q", 0.0, since, retry_at=retry_at, rank=rank)
    task.policy = ThrottlePolicy((TENANT,), cost)
    if reservation is not None:
        task.reservations[TENANT.key] = reservation
    return task


def test_a_task_that_has_waited_for_longer_takes_the_place_of_the_last_one_and_all_keep_their_order():
    queue = HoldQueue(TENANT)
    places = [(1.0, 10), (3.0, 20), (4.0, 30)]  # waiting since, reservation
    first, third, last = tasks = [waiting(since, reservation=at, retry_at=at / 10) for since, at in places]
    for task in tasks:
        queue.add(task)
    second = waiting(2.0)
    assert take_place(queue, second) is last
    queue.add(second)
    assert list(queue.tasks) == [first, second, third]
    assert [task.reservations[TENANT.key] for task in queue.tasks] == [10, 20, 30]
    assert [task.retry_at for task in queue.tasks] == [1.0, 2.0, 3.0]
    assert not last.reservations


def test_a_more_urgent_task_takes_the_place_of_the_last_one_and_goes_first():
    queue, tasks = HoldQueue(TENANT), [waiting(float(at), reservation=10 * at, rank=5) for at in (1, 2, 3)]
    for task in tasks:
        queue.add(task)
    urgent = waiting(9.0)
    assert take_place(queue, urgent) is tasks[2]
    queue.add(urgent)
    assert list(queue.tasks) == [urgent, *tasks[:2]]
    assert [task.reservations[TENANT.key] for task in queue.tasks] == [10, 20, 30]


@pytest.mark.parametrize(("since", "cost"), [(5.0, 1.0), (4.0, 1.0), (None, 1.0), (2.0, 3.0)])
def test_a_younger_or_a_different_task_takes_no_place(since, cost):
    queue, held = HoldQueue(TENANT), waiting(4.0, reservation=10)
    queue.add(held)
    assert take_place(queue, waiting(since, cost=cost)) is None
    assert list(queue.tasks) == [held]
    assert held.reservations == {TENANT.key: 10}
