"""Admission in simulated fleets: each test runs a workload and checks its outcome."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import Fleet, Job
from strategies import outages, restarts, tables, workloads

from bucketflow.errors import CostExceedsCapacity
from bucketflow.testing import worst_excess
from bucketflow_celery import Limit, ThrottleTimeout
from bucketflow_celery.store.active_limits import VERSION_CHECK_INTERVAL


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
def test_running_tasks_never_exceed_slots_even_while_the_store_is_down_and_all_are_admitted(path):
    limits = {"queues": {"q": "1000/s"}} if path == "limited" else {}
    jobs = [Job(duration=1.0) for _ in range(50)]
    fleet = play(limits, jobs, slots=3, prefetch=50, store_down=[(0, 20)], on_store_error="admit")
    assert_all_ran_once(fleet)
    # 3 at a time, 1 s each: simulation.py raises on a fourth.
    assert fleet.starts()[-1][0] == pytest.approx(16, abs=0.1)


# Tickets


def overdue_until(seconds):
    """Return a lateness: tasks due every 0.1 s, from 0 s on, are all delivered at *seconds*."""
    return lambda number: max(0.0, seconds - number * 0.1)


def test_late_tickets_cause_no_burst_and_one_request_per_token():
    jobs = [Job(at=number * 1e-4, tenant="a") for number in range(300)]
    fleet = play({"tenants": {"*": Limit(2, 10)}}, jobs, workers=2, lateness=overdue_until(20))
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert max(job.deliveries for job in jobs) == 2
    # Two requests per task, and one per token by the head of each hold queue: not one by each held task per token.
    assert fleet.calls() < 4 * len(jobs)


# A deep queue


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("depth", "fill_rate"), [(1500, 5), (3000, 20), (3000, 100)])
def test_a_deep_backlog_that_stands_before_the_workers_runs_at_its_limit_and_in_order(depth, fill_rate, workers):
    jobs = [Job(tenant="a") for _ in range(depth)]
    fleet = Fleet({"tenants": {"*": Limit(10, fill_rate)}}, workers=workers, read_seconds=0.004)
    for job in jobs:
        fleet.send(job)
    seconds = 30
    fleet.run(seconds)
    assert_no_window_over(fleet)
    started = [jobs.index(job) for _, job in fleet.starts()]
    assert len(started) >= 0.98 * min(depth, 10 + seconds * fill_rate)
    assert max(abs(place - number) for number, place in enumerate(started)) <= 0.01 * depth
    assert max(job.deliveries for job in jobs) <= 2


def test_a_deep_backlog_of_one_tenant_delays_no_other_tenant_by_more_than_it_takes_to_read_it():
    jobs = [Job(tenant="a") for _ in range(2000)]
    others = [Job(tenant=f"t{number}") for number in range(100)]
    fleet = Fleet({"tenants": {"*": Limit(10, 5)}}, workers=2, read_seconds=0.004)
    for job in [*jobs, *others]:
        fleet.send(job)
    fleet.run(30)
    assert max(job.starts[0] for job in others) <= 2100 * 0.004


# A due task and a busy worker


@pytest.mark.parametrize("level", ["tenants", "tasks"])
def test_a_due_task_without_a_slot_starts_in_another_worker(level):
    fleet = Fleet({level: {"*": Limit(1, 1)}}, workers=2, slots=1)
    limited = [fleet.send(Job(tenant="a", name="f")) for _ in range(20)]
    fleet.send(Job(at=0.5, tenant="b", name="g", duration=60))
    fleet.run(60)
    assert_no_window_over(fleet)
    assert max(job.starts[0] for job in limited) <= 19 + 1
    assert max(job.deliveries for job in limited) <= 4


def test_a_due_task_that_no_worker_has_a_slot_for_makes_few_trips():
    fleet = Fleet({"tenants": {"*": Limit(1, 1)}}, workers=2, slots=1)
    limited = [fleet.send(Job(tenant="a")) for _ in range(20)]
    for _ in range(2):
        fleet.send(Job(at=0.5, tenant="b", duration=600, name="g"))
    fleet.run(700)
    assert not fleet.lost()
    assert max(job.deliveries for job in limited) <= 25


@pytest.mark.parametrize("duration", [0.01, 0.4])
def test_due_tasks_keep_their_turn_in_a_busy_worker_with_a_backlog(duration):
    fleet = Fleet({"tenants": {"acme": Limit(1, 2)}}, slots=1, read_seconds=0.001)
    limited = [fleet.send(Job(tenant="acme")) for _ in range(20)]
    busy = [fleet.send(Job(at=0.7, duration=duration, name="g")) for _ in range(60)]
    fleet.run(400)
    assert_all_ran_once(fleet)
    assert max(job.deliveries for job in limited) <= 25
    assert max(job.starts[0] for job in limited) <= 10 + (len(busy) - 10) * duration


@pytest.mark.parametrize("workers", [1, 2])
def test_slots_that_turn_over_cause_no_further_deliveries(workers):
    fleet = Fleet({"tenants": {"acme": Limit(10, 50)}}, workers=workers, slots=1, read_seconds=0.001)
    limited = [fleet.send(Job(tenant="acme", duration=0.05)) for _ in range(200)]
    for _ in range(workers):
        fleet.send(Job(at=0.5, duration=8, name="g"))
    fleet.run(400)
    assert_all_ran_once(fleet)
    assert sum(job.deliveries for job in limited) <= 5 * len(limited)


def test_no_message_stays_unacknowledged_for_longer_than_a_worker_may_keep_it():
    fleet = Fleet({"tenants": {"a": Limit(1, 0.1)}}, slots=1, prefetch=50, max_countdown=4, max_unacknowledged=5)
    for number in range(20):
        fleet.send(Job(tenant="ab"[number % 2], duration=7))
    fleet.run_out()
    assert not fleet.lost()
    assert fleet.longest_unacknowledged() <= 5 + 1.1


# Changes of limits


def test_held_tasks_start_when_their_limit_is_lifted():
    fleet = Fleet({"queues": {"q": "1/s"}}, slots=4)
    for _ in range(30):
        fleet.send(Job())
    fleet.at(5.0, lambda: fleet.store.set_limits({}))
    fleet.run(60)
    assert_all_ran_once(fleet)
    assert fleet.starts()[-1][0] < 8


def test_a_task_whose_cost_exceeds_a_new_capacity_fails_once_and_never_runs():
    fleet = Fleet({"queues": {"q": Limit(100, 1)}}, slots=1, prefetch=50)
    jobs = [fleet.send(Job(cost=3, duration=1)) for _ in range(20)]
    fleet.at(4.5, lambda: fleet.store.set_limits({"queues": {"q": Limit(2, 100)}}))
    fleet.run(200)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {CostExceedsCapacity}
    assert 0 < sum(bool(job.starts) for job in jobs) < 20


def test_new_limits_keep_the_order_of_a_hold_queue():
    fleet = Fleet({"queues": {"q": "2/s"}}, slots=4)
    jobs = [fleet.send(Job()) for _ in range(30)]
    fleet.at(3.3, lambda: fleet.store.set_limits({"queues": {"q": "3/s"}}))
    fleet.run(60)
    assert_all_ran_once(fleet)
    assert [job for _, job in fleet.starts()] == jobs


# Max wait


@pytest.mark.parametrize("level", ["queues", "tenants"])
@pytest.mark.parametrize("max_wait", [0.3, 3])
def test_tasks_that_fail_by_max_wait_leave_no_reservation_unused(level, max_wait):
    jobs = [Job(at=number / 20, tenant="a", max_wait=max_wait) for number in range(400)]
    fleet = play({level: {"*": Limit(1, 10)}}, jobs)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {ThrottleTimeout}
    # Twice as many tasks as tokens arrive for 20 s.
    assert sum(at <= 20 for at, _ in fleet.starts()) >= 0.99 * 20 * 10
    assert max(at - job.at for at, job in fleet.starts()) <= max_wait + 0.05


# Guarantees, one workload each


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize(("capacity", "fill_rate"), [(1, 20), (5, 20), (20, 200)])
@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
def test_never_exceeds_never_idles_and_redelivers_at_most_once(level, capacity, fill_rate, workers):
    limit = Limit(capacity, fill_rate)
    jobs = [Job(tenant="a", duration=0.01) for _ in range(300)]
    fleet = play({level: limit if level == "all" else {"*": limit}}, jobs, workers=workers)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    ideal = (len(jobs) - capacity) / fill_rate
    assert fleet.starts()[-1][0] <= ideal / 0.99 + 0.1
    assert max(job.deliveries for job in jobs) <= (1 if level in ("all", "queues") else 2)


@pytest.mark.parametrize("level", ["all", "queues"])
def test_a_held_task_makes_no_calls_while_it_waits_and_blocks_no_other_queue(level):
    limit = {"all": None, "queues": {"q": "1/s"}} if level == "queues" else {"tasks": {"f": Limit(1, 1)}}
    limited = [Job(at=number * 1e-4) for number in range(500)]
    free = [Job(at=0.1, queue="free", name="g", duration=0.01) for _ in range(100)]
    fleet = play(limit, [*limited, *free])
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in free) < 2
    if level == "queues":
        per_second = Counter(int(at) for at in fleet.workers[0].calls)
        assert max(count for second, count in per_second.items() if second > 1) <= 3
        assert {job.deliveries for job in limited} == {1}


def test_a_worker_without_limited_tasks_only_checks_for_new_limits_at_intervals():
    fleet = play({"tenants": {"a": "1/s"}}, [Job(tenant="b", duration=1) for _ in range(100)])
    assert_all_ran_once(fleet)
    assert 1 < fleet.calls() <= 1 + max(job.starts[0] for job in fleet.jobs) / VERSION_CHECK_INTERVAL


def test_tasks_without_cost_are_admitted_at_once():
    fleet = play({"all": "1/h"}, [Job(cost=0) for _ in range(100)])
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in fleet.jobs) < 1


def test_a_task_whose_cost_exceeds_the_capacity_fails_at_once():
    fleet = play({"queues": {"q": Limit(2, 1)}}, [Job(cost=3), Job(cost=2)])
    too_expensive, admitted = fleet.jobs
    assert [type(error) for error in too_expensive.errors] == [CostExceedsCapacity]
    assert not too_expensive.starts
    assert admitted.starts == [0]


def test_a_hold_queue_is_served_in_order():
    jobs = [Job(at=number * 1e-3, cost=1 + number % 3) for number in range(60)]
    fleet = play({"queues": {"q": Limit(3, 10)}}, jobs)
    assert [job for _, job in fleet.starts()] == jobs


def test_each_tenant_below_a_queue_has_its_own_limit():
    jobs = [Job(tenant="noisy") for _ in range(200)] + [Job(tenant=name) for name in "ab" for _ in range(20)]
    fleet = play({"queues": {"q": "100/s"}, "tenants": {"*": Limit(1, 5)}}, jobs, workers=2)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    last = {job.tenant: at for at, job in fleet.starts()}
    assert last["a"] <= 19 / 5 + 0.5
    assert last["b"] <= 19 / 5 + 0.5
    assert last["noisy"] <= 199 / 5 / 0.99 + 0.1


def test_a_tenant_at_its_limit_in_an_exhausted_queue_does_not_multiply_the_calls():
    pattern = "abdd"
    jobs = [Job(tenant=pattern[number % 4], duration=0.01) for number in range(600)]
    fleet = play({"queues": {"q": Limit(1, 20)}, "tenants": {"d": Limit(1, 1)}}, jobs)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert max(job.starts[0] for job in jobs if job.tenant != "d") <= 300 / 20 / 0.98
    assert fleet.calls() < 3 * len(jobs)


# Outages


@pytest.mark.parametrize("policy", ["hold", "refuse", "admit"])
@pytest.mark.parametrize("lost_replies", [False, True])
def test_a_store_outage_loses_no_task_and_the_workers_recover_by_themselves(policy, lost_replies):
    jobs = [Job(at=number / 10, tenant="a", duration=0.05) for number in range(300)]
    limits = {"queues": {"q": Limit(2, 8)}}
    options = {"on_store_error": policy, "store_down": [(5, 15)], "lost_replies": lost_replies}
    fleet = play(limits, jobs, workers=2, **options)
    assert_all_ran_once(fleet)
    calls = [at for worker in fleet.workers for at in worker.calls if 5 <= at < 15]
    assert 0 < len(calls) <= 2 * 8, "0.5, 1, 2, 4, 8 s between two calls of a worker"
    starts = [at for at, _ in fleet.starts() if 5 <= at < 15]
    assert bool(starts) == (policy == "admit")
    if policy != "admit":
        assert_no_window_over(fleet)


def test_a_request_without_a_reply_keeps_its_reservation():
    fleet = play({"queues": {"q": Limit(1, 0.5)}}, [Job(), Job()], store_down=[(1.5, 2.2)])
    # The reservation is for 2 s; the circuit breaker allows the next call at 2.5 s.
    assert [at for at, _ in fleet.starts()] == [0, 2.5]


def test_the_circuit_breaker_starts_each_outage_with_a_short_pause():
    jobs = [Job(at=number / 2) for number in range(80)]
    fleet = play({"queues": {"q": "10/s"}}, jobs, store_down=[(1, 6), (20.9, 21.2)])
    assert_all_ran_once(fleet)
    assert max(job.starts[0] - job.at for job in jobs if job.at >= 20) <= 0.6


def test_tasks_that_cannot_be_deferred_are_held_and_start_at_the_limited_rate():
    jobs = [Job(tenant="a") for _ in range(50)]
    fleet = play({"tenants": {"*": Limit(1, 5)}}, jobs, broker_down=[(0, 4000)])
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert {job.deliveries for job in jobs} == {1}
    assert fleet.starts()[-1][0] <= 49 / 5 / 0.98 + 0.1


def test_tasks_whose_copies_the_broker_refuses_for_good_wait_as_with_hold():
    starts = []
    for on_limit in ("retry", "hold"):
        fleet = Fleet({"tenants": {"*": Limit(1, 5)}}, max_hold=6, refuses_copies=True)
        for _ in range(100):
            fleet.send(Job(tenant="a", on_limit=on_limit))
        fleet.run_out()
        assert_all_ran_once(fleet)
        assert_no_window_over(fleet)
        assert fleet.longest_unacknowledged() <= 6 + 1.1
        starts.append([at for at, _ in fleet.starts()])
    assert starts[0] == starts[1]


def test_a_task_held_longer_than_max_hold_is_requeued_and_runs_once():
    jobs = [Job() for _ in range(40)]
    fleet = play({"queues": {"q": "1/s"}}, jobs, max_hold=5, workers=2)
    assert_all_ran_once(fleet)
    assert sum(worker.stats.requeued for worker in fleet.workers) > 0
    assert fleet.starts()[-1][0] <= 39 / 0.98 + 1


def test_a_wait_beyond_max_countdown_costs_one_deferral_per_countdown():
    jobs = [Job(tenant="a") for _ in range(60)]
    fleet = play({"tenants": {"*": "1/s"}}, jobs, max_countdown=20)
    assert_all_ran_once(fleet)
    for job in jobs:
        assert job.deferrals <= -(-job.starts[0] // 20)


@pytest.mark.parametrize("level", ["queues", "tenants", "tasks"])
@pytest.mark.parametrize("on_limit", ["retry", "hold"])
def test_tasks_that_expire_before_they_could_start_delay_no_other_task(level, on_limit):
    first, last = Job(tenant="a", on_limit=on_limit), Job(at=1.5, tenant="a", on_limit=on_limit)
    expiring = [Job(at=1.0, tenant="a", on_limit=on_limit, expires_at=3.0) for _ in range(4)]
    fleet = play({level: {"*": Limit(1, 0.2)}}, [first, *expiring, last], workers=2)
    assert first.starts == [0.0]
    assert last.starts == [pytest.approx(5.0, abs=0.01)]
    assert [job.outcomes for job in expiring] == [job.gone for job in expiring] == [1] * 4
    assert not fleet.lost()


def test_revoked_tasks_never_start_and_delay_no_other_task():
    jobs = [Job(revoked_at=0.5 if number % 2 else None) for number in range(60)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    # Revoked tasks start only in the first half second, before they are revoked.
    assert sum(bool(job.starts) for job in jobs if job.revoked_at) <= 4
    assert fleet.starts()[-1][0] <= 34 / 10 / 0.98 + 0.2


def test_a_soft_shutdown_requeues_all_pending_tasks():
    fleet = Fleet({"queues": {"q": Limit(1, 10)}, "tenants": {"*": Limit(1, 4)}}, workers=2)
    jobs = [fleet.send(Job(tenant="ab"[number % 2], duration=0.1)) for number in range(80)]
    first, second = fleet.workers
    fleet.at(2.0, first.close)
    fleet.at(4.0, second.close)
    fleet.at(9.0, lambda: (first.open(), fleet.deliver()))
    fleet.run(200)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert not [at for at, _ in fleet.starts() if 4.0 < at < 9.0]
    assert len(jobs) == 80


# Random workloads

options = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 3),
        "slots": st.sampled_from([1, 2, 4, 8]),
        "prefetch": st.sampled_from([1, 4, 16]),
        "on_store_error": st.sampled_from(["hold", "admit", "refuse"]),
        "max_hold": st.sampled_from([600, 600, 5]),
        "max_countdown": st.sampled_from([900, 900, 5]),
        "store_down": st.one_of(st.just([]), outages),
        "broker_down": st.one_of(st.just([]), outages),
        "lost_replies": st.booleans(),
        "latency": st.sampled_from([0.0, 0.002]),
    }
)
changes = st.one_of(st.just([]), st.lists(st.tuples(st.floats(0, 30), st.one_of(st.none(), tables)), max_size=2))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tables, workloads(["retry"], ["retry", "hold"]), options, st.sampled_from([0, 0.003, 0.2]), changes, restarts)
def test_under_any_workload_every_task_runs_once_or_fails_or_is_revoked(  # noqa: PLR0913, PLR0917
    limits, jobs, options, lateness, changes, restarts
):
    fleet = Fleet(limits, lateness=lambda number: number % 7 * lateness, **options)
    for job in jobs:
        fleet.send(job)
    for at, table in changes:
        fleet.at(at, partial(fleet.store.set_limits, table))
    for number, at in restarts:
        fleet.restart(fleet.workers[number % len(fleet.workers)], at, 5.0)
    fleet.run(4000)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    for job in jobs:
        assert job.starts or job.gone or isinstance(job.errors[0], (ThrottleTimeout, CostExceedsCapacity))
        assert not job.errors or job.max_wait is not None or isinstance(job.errors[0], CostExceedsCapacity)
    if not changes and not (options["on_store_error"] == "admit" and options["store_down"]):
        assert_no_window_over(fleet)
    for worker in fleet.workers:
        assert not worker.held
        assert (worker.unacknowledged, worker.stats.waiting, worker.timer) == (0, 0, None)
        # No busy loop: a few calls for each delivered task, and a few for each hold queue.
        per_second = Counter(int(at) for at in worker.calls)
        assert max(per_second.values(), default=0) <= 2 * len(jobs) + 60
        assert max(worker.rounds.values(), default=0) <= 10 * len(jobs) + 60


def test_a_worker_without_limited_tasks_applies_new_limits():
    fleet = Fleet({"queues": {"other": "1/s"}}, slots=4)
    fleet.at(1.0, lambda: fleet.store.set_limits({"all": "1/s"}))
    jobs = [fleet.send(Job(at=number * 0.5, duration=0.01)) for number in range(40)]
    fleet.run(4000.0)
    assert_all_ran_once(fleet)
    later = [job.starts[0] for job in jobs if job.at > 1 + VERSION_CHECK_INTERVAL]
    assert worst_excess([(at, 1.0) for at in sorted(later)], Limit(1, 1)) < 1e-6


@pytest.mark.parametrize("old", ["1/h", "1/m", "1/s"])
@pytest.mark.parametrize("level", ["queues", "tenants"])
def test_raised_limits_apply_at_once_to_held_and_to_new_tasks(level, old):
    fleet = Fleet({level: {"*": old}}, slots=4)
    fleet.at(5.0, lambda: fleet.store.set_limits({level: {"*": "100/s"}}))
    held = [fleet.send(Job(tenant="a")) for _ in range(10)] if level == "queues" else []
    fresh = [fleet.send(Job(tenant="a", at=5.5)) for _ in range(10)]
    fleet.send(Job(tenant="a", at=0.1))
    fleet.run(4000.0)
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in held + fresh) < 12
