"""Parking in simulated fleets: each test runs a workload of parked tasks and checks its outcome."""

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
from bucketflow_celery.config.table import pause_name
from bucketflow_celery.parking.poll_schedule import POLL_INTERVAL

LATENCIES = pytest.mark.parametrize("latency", [0.0, 0.002])


def parked(**fields):
    return Job(**{"on_limit": "park", "tenant": "a", **fields})


def fleet_of(limits, jobs=(), **options):
    fleet = Fleet(limits, parks=True, **options)
    for job in jobs:
        fleet.send(job)
    return fleet


def play(limits, jobs, until=4000.0, **options):
    fleet = fleet_of(limits, jobs, **options)
    fleet.run_out(until)
    return fleet


def assert_no_loss_and_no_unexpected_repeat(fleet):
    """Check that no task is lost, and that none starts or fails more than once, plus its allowed repeats."""
    assert not fleet.lost()
    # A second delivery that was revoked meanwhile is dropped, even if the first has run.
    assert [job for job in fleet.jobs if len(job.starts) + len(job.errors) > 1 + job.allowed_repeats] == []


def assert_all_ran_once(fleet):
    assert [len(job.starts) for job in fleet.jobs] == [1] * len(fleet.jobs)
    assert not fleet.more_than_once()


def assert_no_window_over(fleet):
    for key, (level, starts) in fleet.starts_by_bucket().items():
        assert worst_excess(starts, level.limit) < 1e-6 * max(1, level.limit.fill_rate), key


def assert_idle(fleet):
    assert fleet.store.backlogs.queues() == []
    assert not any(fleet.store.backlogs._leases.owned.values())
    for worker in fleet.workers:
        assert not worker.held
        assert (worker.unacknowledged, worker.stats.waiting) == (0, 0)
        assert worker.parking is None or not worker.parking.in_flight_tasks._tasks


def last_start(fleet, **fields):
    return max(at for at, job in fleet.starts() if all(getattr(job, name) == value for name, value in fields.items()))


# Guarantees, one workload each


@LATENCIES
@pytest.mark.parametrize("workers", [1, 3])
def test_a_store_without_memory_dispatches_at_the_limit_and_parks_the_others_when_it_has_some(workers, latency):
    early, late = [parked() for _ in range(100)], [parked(at=3.0) for _ in range(40)]
    limits = {"queues": {"q": Limit(1, 10)}}
    fleet = play(limits, early + late, workers=workers, latency=latency, prefetch=200, store_full=[(2.0, 30.0)])
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert_idle(fleet)
    starts = [at for at, _ in fleet.starts()]
    assert starts[99] <= 99 / 10 / 0.99 + 0.2
    assert starts[-1] <= 30 + 40 / 10 / 0.99 + 10.5
    assert fleet.calls() < 800  # it backs off


@pytest.mark.parametrize("redelivered", [True, False])
@pytest.mark.parametrize("outage", ["store_full", "store_down"])
def test_what_cannot_be_parked_goes_back_before_the_broker_misses_it(outage, redelivered):
    options = {outage: [(2.0, 300.0)], "lost_replies": True, "tells_redelivery": redelivered}
    fleet = Fleet(
        {"queues": {"q": Limit(1, 10)}}, parks=True, prefetch=50, max_hold=20.0, max_unacknowledged=50.0, **options
    )
    for number in range(60):
        fleet.send(parked(at=1.9 + number / 100))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_idle(fleet)
    assert fleet.longest_unacknowledged() <= 50.0 + 11  # the circuit breaker pauses for ten seconds


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("capacity", "fill_rate", "latency"), [(1, 20, 0), (5, 20, 0), (5, 20, 0.002), (20, 200, 0), (20, 200, 0.002)]
)
@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
def test_never_exceeds_never_idles_with_one_delivery_and_one_dispatch(level, capacity, fill_rate, latency, workers):
    limit = Limit(capacity, fill_rate)
    jobs = [parked(duration=0.01) for _ in range(300)]
    limits = {level: limit if level == "all" else {"*": limit}}
    fleet = play(limits, jobs, workers=workers, latency=latency)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert_idle(fleet)
    assert last_start(fleet) <= (len(jobs) - capacity) / fill_rate / 0.99 + 0.1
    assert max(job.deliveries for job in jobs) == 1
    assert max(job.dispatched for job in jobs) == 1


@LATENCIES
def test_the_tasks_of_a_tenant_start_in_order(latency):
    jobs = [parked(at=number * 1e-3, tenant="abc"[number % 3], duration=0.01) for number in range(150)]
    fleet = play({"queues": {"q": Limit(3, 30)}}, jobs, latency=latency)
    assert_all_ran_once(fleet)
    for tenant in "abc":
        expected = [job for job in jobs if job.tenant == tenant]
        assert [job for _, job in fleet.starts() if job.tenant == tenant] == expected


@LATENCIES
def test_the_lowest_rank_is_dispatched_first(latency):
    jobs = [parked(rank=number % 3) for number in range(60)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs, latency=latency, prefetch=100)
    assert_all_ran_once(fleet)
    ranks = [job.rank for at, job in fleet.starts() if at > 0.5]
    assert ranks == sorted(ranks)


@LATENCIES
@pytest.mark.parametrize("workers", [1, 3])
def test_a_fresh_task_never_overtakes_the_backlog_of_its_tenant(workers, latency):
    jobs = [parked() for _ in range(50)]
    fresh = [parked(at=0.5 + number / 10) for number in range(40)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs + fresh, workers=workers, latency=latency)
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in jobs) < min(job.starts[0] for job in fresh)


@LATENCIES
def test_a_late_tenant_is_served_beside_a_noisy_one(latency):
    noisy = [parked(duration=0.01) for _ in range(1000)]
    late = [parked(at=4, tenant="b", duration=0.01) for _ in range(50)]
    fleet = play({"queues": {"q": Limit(10, 50)}}, noisy + late, workers=2, latency=latency)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    # 50 tasks at half of 50/s take 2 s. Behind the 1 000 of the noisy tenant they would take 17 s.
    assert last_start(fleet, tenant="b") <= 4 + 2.2
    assert last_start(fleet) <= (1050 - 10) / 50 / 0.99 + 0.1


@LATENCIES
def test_tenants_share_by_weight_and_use_unused_shares(latency):
    weights = {"a": 5, "b": 3}
    jobs = [parked(tenant="abc"[number % 3], duration=0.01) for number in range(900)]
    fleet = play({"queues": {"q": Limit(5, 90)}, "weights": weights}, jobs, workers=2, latency=latency, prefetch=500)
    assert_all_ran_once(fleet)
    shares = Counter(job.tenant for at, job in fleet.starts() if 0.5 < at <= 5.5)
    total = sum(shares.values())
    for tenant, weight in {"a": 5, "b": 3, "c": 1}.items():
        assert shares[tenant] / total == pytest.approx(weight / 9, rel=0.03)
    assert last_start(fleet) <= (900 - 5) / 90 / 0.99 + 0.1


@LATENCIES
def test_the_share_of_a_limited_tenant_goes_to_the_others_at_once(latency):
    jobs = [parked(tenant="slow") for _ in range(20)] + [parked(tenant="b") for _ in range(500)]
    limits = {"queues": {"q": Limit(5, 50)}, "tenants": {"slow": Limit(1, 1)}}
    fleet = play(limits, jobs, workers=2, latency=latency)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert last_start(fleet, tenant="b") <= (500 - 5) / 49 / 0.99 + 0.2
    assert last_start(fleet, tenant="slow") <= 19 / 0.99 + 0.3


# Slots


@LATENCIES
@pytest.mark.parametrize("slots", [1, 2, 4])
def test_parked_and_unlimited_tasks_share_scarce_slots(slots, latency):
    free = [Job(queue="free", duration=0.1) for _ in range(400)]
    limited = [parked(duration=0.1) for _ in range(400)]
    fleet = play({"queues": {"q": "1000/s"}}, free + limited, slots=slots, latency=latency, queues=["q", "free"])
    assert_all_ran_once(fleet)
    # While both wait, each has at least a fifth of the slots: if all become free at once, parked tasks are polled last.
    starts = Counter(job.queue for at, job in fleet.starts() if 1 < at <= 9)
    assert min(starts["q"], starts["free"]) >= sum(starts.values()) / 5
    assert last_start(fleet) <= 800 * 0.1 / slots / 0.95 + 0.5


@LATENCIES
def test_a_task_without_a_free_slot_is_parked_and_started_by_another_worker(latency):
    busy, idle = [Job(duration=30) for _ in range(4)], [parked(at=1, queue="r") for _ in range(10)]
    fleet = fleet_of({"queues": {"r": "100/s"}}, [*busy, *idle], workers=2, latency=latency)
    second = fleet.workers[1]
    second.frozen_until = 2.0
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert [job.parked for job in idle] == [1] * 10
    assert max(job.starts[0] for job in idle) <= 2.1


def test_a_task_that_holds_is_not_parked_while_it_waits_for_a_slot():
    jobs = [Job(duration=1, on_limit="hold") for _ in range(20)]
    fleet = play({"queues": {"q": "100/s"}}, jobs)
    assert_all_ran_once(fleet)
    assert not any(job.parked for job in jobs)


# Unregistered task types


@LATENCIES
def test_tasks_that_one_worker_cannot_run_start_on_another_and_delay_no_other_task(latency):
    jobs = [parked(tenant=f"t{number % 10}", name="fg"[number % 2]) for number in range(200)]
    fleet = fleet_of({"queues": {"q": Limit(1, 50)}}, jobs, workers=2, latency=latency, prefetch=100)
    for worker, task in zip(fleet.workers, "fg", strict=True):
        del worker.tasks[task]
    fleet.run_out()
    assert not fleet.lost()
    assert last_start(fleet) <= 199 / 50 / 0.95 + POLL_INTERVAL


# Changes of limits


@LATENCIES
@pytest.mark.parametrize("old", ["1/h", "1/m", "1/s"])
@pytest.mark.parametrize("level", ["queues", "tenants"])
@pytest.mark.parametrize("mode", ["park", "hold", "retry"])
def test_raised_limits_apply_at_once_to_all_waiting_tasks(level, old, mode, latency):
    fleet = fleet_of({level: {"*": old}}, workers=2, latency=latency)
    fleet.at(5.0, lambda: fleet.store.set_limits({level: {"*": "100/s"}}))
    jobs = [fleet.send(parked(on_limit="park")) for _ in range(10)]
    others = [fleet.send(parked(on_limit=mode)) for _ in range(10)] if level == "queues" or mode != "retry" else []
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in jobs) < 6
    assert max((job.starts[0] for job in others), default=0) < 7


def test_parked_tasks_start_when_their_limit_is_lifted():
    fleet = fleet_of({"queues": {"q": "1/m"}}, [parked() for _ in range(30)])
    fleet.at(5.0, lambda: fleet.store.set_limits({}))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert last_start(fleet) < 6


def test_a_parked_task_whose_cost_exceeds_a_new_capacity_fails_and_never_runs():
    fleet = fleet_of({"queues": {"q": Limit(100, 1)}}, slots=1)
    jobs = [fleet.send(parked(cost=3, duration=1)) for _ in range(40)]
    fleet.at(4.5, lambda: fleet.store.set_limits({"queues": {"q": Limit(2, 100)}}))
    fleet.run_out()
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {CostExceedsCapacity}
    assert_idle(fleet)


# Pauses


PAUSES = [("all", ""), ("queue", "q"), ("tenant", "a"), ("task", "f")]


@LATENCIES
@pytest.mark.parametrize("mode", ["park", "hold", "retry"])
@pytest.mark.parametrize(("level", "name"), PAUSES)
@pytest.mark.parametrize("limits", [{"queues": {"q": "20/s"}}, {"tenants": {"*": "20/s"}}, {}])
def test_paused_tasks_do_not_start_until_they_are_resumed(level, name, limits, mode, latency):
    fleet = fleet_of(limits, workers=2, latency=latency, read_seconds=0.0005)
    jobs = [fleet.send(parked(at=number / 50, on_limit=mode)) for number in range(200)]
    fleet.at(1.0, lambda: fleet.store.pause(pause_name(level, name), paused=True))
    fleet.at(20.0, lambda: fleet.store.pause(pause_name(level, name), paused=False))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert not [at for at, _ in fleet.starts() if 1.1 < at < 20]
    assert min(at for at, _ in fleet.starts() if at > 19) <= 20 + 1
    assert last_start(fleet) <= 20 + 200 / 20 + 1 + (6 if mode == "retry" else 1)
    assert {job.dispatched for job in jobs} <= {0, 1}


def test_a_paused_tenant_does_not_delay_other_tenants():
    fleet = fleet_of({"queues": {"q": "50/s"}}, workers=2)
    paused = [fleet.send(parked()) for _ in range(50)]
    running = [fleet.send(parked(tenant="b", at=number / 20)) for number in range(100)]
    fleet.store.pause(pause_name("tenant", "a"), paused=True)
    fleet.at(20.0, lambda: fleet.store.pause(pause_name("tenant", "a"), paused=False))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert max(job.starts[0] - job.at for job in running) < 1
    assert min(job.starts[0] for job in paused) >= 20


# Max wait and revocation


def test_tasks_that_fail_by_max_wait_spend_no_tokens():
    jobs = [parked(at=number / 20, max_wait=2) for number in range(400)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs, workers=2)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert {type(error) for job in jobs for error in job.errors} == {ThrottleTimeout}
    # Twice as many tasks as tokens arrive for 20 s.
    assert sum(at <= 20 for at, _ in fleet.starts()) >= 0.99 * 20 * 10
    assert max(at - job.at for at, job in fleet.starts()) <= 2 + 0.2
    assert_idle(fleet)


@LATENCIES
def test_revoked_tasks_never_start_and_spend_no_tokens(latency):
    jobs = [parked(revoked_at=0.5 if number % 2 else None) for number in range(60)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs, workers=2, latency=latency)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    assert sum(bool(job.starts) for job in jobs if job.revoked_at) <= 4
    assert last_start(fleet) <= 34 / 10 / 0.98 + 0.5
    assert_idle(fleet)


@pytest.mark.parametrize("reason", ["revoked", "unparkable"])
def test_a_task_that_was_not_parked_after_all_blocks_no_new_task_of_its_tenant(reason):
    busy = [Job(duration=5) for _ in range(4)]
    waiting, fresh = parked(at=1, queue="r"), parked(at=20, queue="r")
    fleet = fleet_of({"queues": {"r": "10/s"}}, [*busy, waiting, fresh])
    if reason == "revoked":
        waiting.revoked_at = 1.05
    else:
        fleet.workers[0].encode = lambda _task, **_options: None
    fleet.run_out()
    assert (fresh.starts, fresh.parked) == ([20], 0)


# Outages


@LATENCIES
@pytest.mark.parametrize("policy", ["hold", "refuse", "admit"])
@pytest.mark.parametrize("lost_replies", [False, True])
@pytest.mark.parametrize("tells_redelivery", [False, True])
def test_a_store_outage_loses_no_task_and_runs_none_twice(policy, lost_replies, tells_redelivery, latency):
    jobs = [parked(at=number / 10, duration=0.05) for number in range(300)]
    options = {"on_store_error": policy, "store_down": [(5, 15)], "lost_replies": lost_replies}
    fleet = play(
        {"queues": {"q": Limit(2, 8)}}, jobs, workers=2, latency=latency, tells_redelivery=tells_redelivery, **options
    )
    assert_all_ran_once(fleet)
    if policy != "admit":
        assert_no_window_over(fleet)
    assert_idle(fleet)
    calls = [at for worker in fleet.workers for at in worker.calls if 5 <= at < 15]
    assert 0 < len(calls) <= 2 * (8 + 8 + 21), "admission and parking: 0.5, 1, 2, 4, 8 s; the lease: 0.5 s"


def test_tasks_dispatched_in_lost_replies_return_and_run_once():
    jobs = [parked(duration=0.05) for _ in range(100)]
    fleet = play({"queues": {"q": Limit(1, 10)}}, jobs, store_down=[(2, 4)], lost_replies=True, lease=4)
    assert_all_ran_once(fleet)
    assert max(job.dispatched for job in jobs) == 1
    assert_idle(fleet)


# A full backlog


@LATENCIES
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("queues", [["q"], ["q", "r"]])
def test_a_full_backlog_leaves_the_other_tasks_in_the_broker(queues, workers, latency):
    fleet = fleet_of(
        {"queues": {"q": Limit(1, 20)}}, workers=workers, latency=latency, queues=queues, backlog_limit=50, prefetch=8
    )
    jobs = [fleet.send(parked()) for _ in range(400)]
    samples = []

    def sample():
        samples.append((sum(job.parked > len(job.starts) for job in jobs), len(fleet.queues["q"])))

    for second in range(1, 15):
        fleet.at(second, sample)
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert max(waiting for waiting, _ in samples) <= 50
    assert all(left >= 400 - 50 - 20 * (second + 1) - 3 * 8 * workers for second, (_, left) in enumerate(samples, 1))
    assert last_start(fleet) <= 399 / 20 / 0.97 + 1
    assert max(job.deliveries for job in jobs) == 1


# Killed, frozen, disconnected and stopped workers


@LATENCIES
@pytest.mark.parametrize("acks_late", [False, True])
@pytest.mark.parametrize("at", [0.0005, 0.001, 0.0015, 0.002, 0.5, 2.0, 2.0507, 3.333])
def test_the_tasks_of_a_killed_worker_are_reclaimed_within_its_lease(at, acks_late, latency):
    jobs = [parked(duration=0.2, acks_late=acks_late) for _ in range(200)]
    fleet = fleet_of({"queues": {"q": Limit(5, 20)}}, jobs, workers=2, latency=latency, lease=10)
    fleet.at(at, lambda: fleet.workers[0].kill(away=1000))
    fleet.run_out()
    assert_no_loss_and_no_unexpected_repeat(fleet)
    assert_no_window_over(fleet)
    assert_idle(fleet)
    second_starts = [job.starts[1] for job in jobs if len(job.starts) > 1]
    assert len(second_starts) <= 4
    assert all(start <= at + 10 + 1 for start in second_starts)
    assert last_start(fleet) <= max(200 / 20 / 0.98, at + 11) + 0.5


def test_a_worker_keeps_a_long_task_while_it_renews_its_lease():
    jobs = [parked(duration=3 * 3600, acks_late=True) for _ in range(4)]
    fleet = fleet_of({"queues": {"q": Limit(1, 1)}}, jobs, workers=2)
    fleet.run(4 * 3600, max_events=2_000_000)
    assert_all_ran_once(fleet)
    assert_idle(fleet)


@LATENCIES
@pytest.mark.parametrize("acks_late", [False, True])
def test_a_worker_frozen_for_longer_than_its_lease_starts_no_reclaimed_task(acks_late, latency):
    jobs = [parked(duration=0.2, acks_late=acks_late) for _ in range(300)]
    fleet = fleet_of({"queues": {"q": Limit(5, 20)}}, jobs, workers=2, latency=latency, lease=5)
    fleet.at(3.0507, lambda: fleet.workers[0].freeze(9))
    fleet.run_out()
    assert_no_loss_and_no_unexpected_repeat(fleet)
    assert_idle(fleet)
    assert fleet.workers[0].stats.dispatched > 20, "it polls again"


@LATENCIES
def test_a_store_outage_longer_than_the_lease_reclaims_no_task(latency):
    jobs = [parked(duration=100, acks_late=True) for _ in range(8)]
    fleet = fleet_of({"queues": {"q": Limit(8, 1)}}, jobs, workers=2, latency=latency, store_down=[(20, 80)])
    fleet.run_out()
    assert_all_ran_once(fleet)


@LATENCIES
@pytest.mark.parametrize("forgotten", [0.0, 0.5, 4.0])
@pytest.mark.parametrize("tells_redelivery", [False, True])
def test_a_lost_broker_connection_loses_no_task_and_starts_none_twice(forgotten, tells_redelivery, latency):
    jobs = [parked(at=number / 15, duration=0.3, acks_late=number % 2 == 0) for number in range(200)]
    limits = {"queues": {"q": Limit(5, 10)}}
    fleet = fleet_of(limits, jobs, workers=2, latency=latency, tells_redelivery=tells_redelivery)
    for number in range(40):
        fleet.at(0.25 * number + 0.0007 * number, partial(fleet.workers[number % 2].lose_connection, forgotten))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert_idle(fleet)
    assert last_start(fleet) <= 200 / 10 / 0.98 + 6


@LATENCIES
def test_a_soft_shutdown_returns_all_tasks(latency):
    jobs = [parked(duration=0.1) for _ in range(100)]
    fleet = fleet_of({"queues": {"q": Limit(1, 10)}}, jobs, workers=2, latency=latency)
    first, second = fleet.workers
    fleet.at(2.0507, first.close)
    fleet.at(4.0, second.close)
    fleet.restart(first, 9, 0.001)
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert not [at for at, _ in fleet.starts() if 4.1 < at < 9.0]
    assert last_start(fleet) <= 5 + 99 / 10 / 0.98 + 7


# Redelivered and duplicate messages


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_redelivered_message_is_not_parked_again(acknowledged):
    fleet = fleet_of({"queues": {"q": Limit(1, 10)}}, [parked() for _ in range(50)], workers=2)
    # The connection is lost soon after the messages are stored, or when some of their tasks have run.
    fleet.at(2.0 if acknowledged else 0.05, lambda: fleet.workers[0].lose_connection(forgotten=60))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_idle(fleet)


@LATENCIES
def test_a_message_published_twice_runs_twice(latency):
    duplicates = [parked(message="same") for _ in range(2)]
    play({"queues": {"q": Limit(1, 1)}}, [parked(), parked(), *duplicates], latency=latency, prefetch=1)
    assert sum(len(job.starts) for job in duplicates) == 2


def test_a_message_redelivered_long_after_its_task_ran_does_not_run_again():
    fleet = fleet_of({"queues": {"q": Limit(1, 10)}}, [parked() for _ in range(50)])
    fleet.at(100, lambda: fleet.workers[0].lose_connection(forgotten=100))
    fleet.run(150)
    assert_all_ran_once(fleet)
    assert_idle(fleet)


@LATENCIES
@pytest.mark.parametrize(
    ("lowered", "lost", "outcome"),
    [
        (3.5, 4.0, (1, 0)),  # it had run
        (3.25, 3.2, (1, 0)),  # it had run, and its redelivery waited for a slot when the capacity was lowered
        (1.0, 1.5, (0, 1)),  # the capacity was lowered, and it had failed
    ],
)
def test_a_redelivery_whose_cost_exceeds_a_new_capacity_ends_its_task_only_once(lowered, lost, outcome, latency):
    limits = {"queues": {"q": Limit(5, 1)}}
    fleet = fleet_of(limits, [parked(cost=5), parked(cost=3, duration=1)], slots=1, latency=latency)
    fleet.at(lowered, lambda: fleet.store.set_limits({"queues": {"q": Limit(1, 1)}}))
    fleet.at(lost, lambda: fleet.workers[0].lose_connection(forgotten=60))
    fleet.run_out()
    first, second = fleet.jobs
    assert (len(first.starts), len(first.errors)) == (1, 0)
    assert (len(second.starts), len(second.errors)) == outcome
    assert_idle(fleet)


@LATENCIES
@pytest.mark.parametrize("parkable", [True, False])
def test_a_redelivery_that_was_never_parked_and_exceeds_a_new_capacity_fails_once(parkable, latency):
    fleet = fleet_of({"queues": {"r": Limit(5, 1)}}, [Job(duration=1)], slots=1, latency=latency)
    too_expensive = fleet.send(parked(queue="r", cost=3))
    fleet.at(0.05, fleet.workers[0].lose_connection)
    fleet.at(0.055, lambda: fleet.store.set_limits({"queues": {"r": Limit(1, 1)}}))
    if not parkable:
        fleet.workers[0].encode = lambda _task, **_options: None
    fleet.run_out()
    assert [type(error) for error in too_expensive.errors] == [CostExceedsCapacity]
    assert (too_expensive.starts, too_expensive.deliveries, too_expensive.parked) == ([], 2, int(parkable))
    assert_idle(fleet)


@pytest.mark.parametrize("after", [0.0005, 0.001, 0.0015, 0.0025])
@pytest.mark.parametrize("acks_late", [False, True])
def test_a_connection_lost_while_an_outcome_is_reported_leaves_no_task_behind(acks_late, after):
    jobs = [parked(duration=0.05, acks_late=acks_late) for _ in range(20)]
    fleet = fleet_of({"queues": {"q": Limit(1, 5)}}, jobs, latency=0.002)
    for number in range(1, 19):
        ends_at = number / 5 + 0.002 + (0.05 if acks_late else 0)
        fleet.at(ends_at + after, fleet.workers[0].lose_connection)
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_idle(fleet)


# Number of calls and rounds


@pytest.mark.parametrize("queues", ["q", "qr", "qrs"])
def test_a_hundred_idle_workers_make_less_than_a_hundred_calls_per_second(queues):
    fleet = fleet_of({"queues": {"*": "10/s"}}, workers=100, queues=queues)
    fleet.run(100)
    seconds = Counter(int(at) for worker in fleet.workers for at in worker.calls if at >= 10)
    assert sum(seconds.values()) / 90 < 100


@LATENCIES
def test_calls_and_rounds_are_bounded_under_load(latency):
    jobs = [parked(tenant=f"t{number % 20}", duration=0.05) for number in range(600)]
    limits = {"queues": {"q": Limit(5, 30)}, "tenants": {"*": Limit(1, 5)}}
    fleet = play(limits, jobs, workers=5, latency=latency)
    assert_all_ran_once(fleet)
    assert fleet.calls() < 10 * len(jobs)
    for worker in fleet.workers:
        assert max(worker.rounds.values(), default=0) <= 500


@LATENCIES
def test_a_worker_that_fails_to_receive_dispatched_tasks_limits_its_polls(latency):
    fleet = fleet_of({"queues": {"q": "100/s"}}, [parked() for _ in range(200)], latency=latency)
    parking = fleet.workers[0].parking
    receive = parking.receive

    def fail(*args):
        if fleet.now < 5:
            raise OSError("unexpected")
        return receive(*args)

    parking.receive = fail
    fleet.run(5)
    assert sum(1 < at < 5 for at in fleet.workers[0].calls) <= 4 * 60
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)
    assert_idle(fleet)


@LATENCIES
def test_a_worker_without_a_valid_lease_starts_no_parked_task_and_limits_its_polls(latency):
    fleet = fleet_of({"queues": {"q": Limit(20, 100)}}, [parked() for _ in range(200)], latency=latency, prefetch=200)
    lease = fleet.workers[0].parking.lease
    fleet.at(0.5, lambda: setattr(lease, "is_valid", lambda: fleet.now > 5))
    fleet.run(5)
    assert not [at for at, job in fleet.starts() if at > 0.51 and job.dispatched]
    assert sum(1 < at < 5 for at in fleet.workers[0].calls) <= 4 * 60
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)


@LATENCIES
@pytest.mark.parametrize("mode", ["hold", "park"])
def test_unlimited_tasks_wait_for_a_slot_without_extra_rounds(mode, latency):
    jobs = [Job(duration=10, on_limit=mode) for _ in range(20)]
    fleet = play({"queues": {"other": "1/s"}}, jobs, latency=latency)
    assert_all_ran_once(fleet)
    assert max(fleet.workers[0].rounds.values()) <= 30


@LATENCIES
def test_tasks_of_every_on_limit_share_a_queue(latency):
    jobs = [parked(on_limit=("park", "hold", "retry")[number % 3]) for number in range(150)]
    fleet = play({"queues": {"q": Limit(1, 20)}}, jobs, latency=latency, prefetch=100)
    assert_all_ran_once(fleet)
    assert_no_window_over(fleet)


def test_tasks_that_cannot_be_parked_are_held():
    fleet = fleet_of({"queues": {"q": Limit(1, 10)}}, [parked() for _ in range(40)])
    fleet.workers[0].encode = lambda _task, **_options: None
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert not any(job.parked for job in fleet.jobs)
    assert last_start(fleet) <= 39 / 10 / 0.98 + 0.5


# Random workloads

DISTURBANCES = st.lists(
    st.tuples(st.floats(0, 30), st.integers(0, 2), st.sampled_from(["kill", "freeze", "lose_connection"])), max_size=4
)
CHANGES = st.one_of(st.just([]), st.lists(st.tuples(st.floats(0, 30), st.one_of(st.none(), tables)), max_size=2))
PAUSE_TIMES = st.one_of(
    st.just([]), st.lists(st.tuples(st.floats(0, 30), st.floats(0, 20), st.sampled_from(PAUSES)), max_size=2)
)
OPTIONS = st.fixed_dictionaries(
    {
        "workers": st.integers(1, 3),
        "slots": st.sampled_from([1, 2, 4, 8]),
        "prefetch": st.sampled_from([1, 4, 16]),
        "on_store_error": st.sampled_from(["hold", "admit", "refuse"]),
        "max_hold": st.sampled_from([600, 600, 5]),
        "store_down": st.one_of(st.just([]), outages),
        "broker_down": st.one_of(st.just([]), outages),
        "lost_replies": st.booleans(),
        "latency": st.sampled_from([0.0, 0.002]),
        "tells_redelivery": st.booleans(),
        "backlog_limit": st.sampled_from([1_000_000, 1_000_000, 5]),
        "lease": st.sampled_from([30.0, 2.0]),
        "queues": st.sampled_from([["q", "r", "s"], ["q"]]),
    }
)


def disturb(worker, event):
    if event == "kill" and worker.admission is not None:
        worker.kill(away=3)
    elif event == "freeze":
        worker.freeze(4)
    elif event == "lose_connection" and worker.is_up():
        worker.lose_connection(forgotten=1)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(tables, workloads(["park"], ["park", "retry", "hold"]), OPTIONS, DISTURBANCES, CHANGES, PAUSE_TIMES, restarts)
def test_under_any_workload_no_task_is_lost_and_none_runs_twice_unexpectedly(  # noqa: PLR0913, PLR0917
    limits, jobs, options, events, changes, pauses, restarts
):
    fleet = fleet_of(limits, jobs, **options)
    for at, number, event in events:
        fleet.at(at, partial(disturb, fleet.workers[number % len(fleet.workers)], event))
    for at, table in changes:
        fleet.at(at, partial(fleet.store.set_limits, table))
    for at, seconds, name in pauses:
        fleet.at(at, partial(fleet.store.pause, pause_name(*name), paused=True))
        fleet.at(at + seconds, partial(fleet.store.pause, pause_name(*name), paused=False))
    for number, at in restarts:
        fleet.restart(fleet.workers[number % len(fleet.workers)], at, 5.0)
    fleet.run_out()
    assert_no_loss_and_no_unexpected_repeat(fleet)
    assert_idle(fleet)
    for job in jobs:
        assert job.starts or job.gone or isinstance(job.errors[0], (ThrottleTimeout, CostExceedsCapacity))
    is_frozen = "freeze" in {event for _, _, event in events}
    if not changes and not is_frozen and not (options["on_store_error"] == "admit" and options["store_down"]):
        assert_no_window_over(fleet)
    for worker in fleet.workers:
        assert max(Counter(int(at) for at in worker.calls).values(), default=0) <= 6 * len(jobs) + 100
        assert max(worker.rounds.values(), default=0) <= 20 * len(jobs) + 200
