"""``on_store_error="local"``: while the store is away, each worker goes by its share of each limit."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulation import Fleet, Job
from strategies import restarts, tables, workloads

from bucketflow.algorithm.gcra import tokens_at
from bucketflow.testing import FakeClock, worst_excess
from bucketflow_celery import CostExceedsCapacity, Limit, ThrottleTimeout
from bucketflow_celery.admission.local_limits import LocalLimits
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.ticket import Ticket
from bucketflow_celery.store.circuit_breaker import FIRST_PAUSE, CircuitBreaker
from bucketflow_celery.testing import MemoryStore

#: Seconds after the return of the store in which no limited task starts: until all workers have noticed it.
QUIET = Settings().timeout + FIRST_PAUSE


def local_fleet(limits, jobs, *, workers=2, **options):
    options = {"on_store_error": "local", "local_share": 1 / workers} | options
    fleet = Fleet(limits, workers=workers, **options)
    for job in jobs:
        fleet.send(job)
    return fleet


def play(limits, jobs, until=4000.0, **options):
    fleet = local_fleet(limits, jobs, **options)
    fleet.run_out(until)
    return fleet


def starts_by_limit(fleet):
    """Return each level of the table with the (seconds, cost) of the starts that it limits, by key."""
    found = {}
    for at, job in fleet.starts():
        for level in fleet.workers[0].path(job):
            found.setdefault(level.key, (level.limit, []))[1].append((at, job.cost))
    return found


def excesses(fleet, since=0.0, until=float("inf")):
    """Return the excess over each limit between two instants, by key."""
    return {
        key: worst_excess([start for start in starts if since <= start[0] < until], limit)
        for key, (limit, starts) in starts_by_limit(fleet).items()
    }


def assert_all_ran_once(fleet):
    assert not fleet.lost()
    assert [len(job.starts) for job in fleet.jobs] == [1] * len(fleet.jobs)


def is_local(job):
    return any(level.key.startswith("local/") for level in job.path)


@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("lost_replies", [False, True])
def test_the_shares_of_a_fleet_are_the_limit_no_more_and_no_less(level, workers, lost_replies):
    limit = Limit(10, 20)
    jobs = [Job(tenant="a", duration=0.01, on_limit="hold") for _ in range(400)]
    table = {level: limit if level == "all" else {"*" if level != "tasks" else "f": limit}}
    fleet = play(table, jobs, workers=workers, store_down=[(3, 15)], lost_replies=lost_replies)
    assert_all_ran_once(fleet)
    assert max(excesses(fleet).values()) < 1e-6, "before, during and after the outage"
    during = [job for at, job in fleet.starts() if 3.1 <= at < 15]
    assert all(is_local(job) for job in during)
    if level == "all" or workers == 1:  # else the simulated broker delivers all tasks to one worker, which holds them
        assert len(during) >= 0.97 * 12 * limit.fill_rate


def test_no_limited_task_starts_until_all_workers_have_noticed_the_return():
    fleet = play({"all": Limit(10, 20)}, [Job(duration=0.01) for _ in range(300)], workers=3, store_down=[(3.2, 9)])
    assert_all_ran_once(fleet)
    last_local = max(at for at, job in fleet.starts() if is_local(job))
    first_after = min(at for at, job in fleet.starts() if at > 9 and not is_local(job))
    assert 9 <= last_local <= 9 + FIRST_PAUSE
    assert 9 + QUIET <= first_after <= 9 + QUIET + FIRST_PAUSE + 0.01
    assert max(excesses(fleet).values()) < 1e-6


@pytest.mark.parametrize("latency", [0.0, 0.002])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_store_is_charged_at_its_return_with_a_burst_that_it_does_not_know(workers, latency):
    limit = Limit(60, 5)
    waves = {0.0: 60, 3.5: 4 * workers, 50.0: 300}  # the second one lets all workers notice the outage
    jobs = [Job(at=at, duration=0.01) for at, count in waves.items() for _ in range(count)]
    fleet = play({"all": limit}, jobs, workers=workers, store_down=[(3, 53)], latency=latency)
    assert_all_ran_once(fleet)
    assert sum(50 <= at < 51 for at, _ in fleet.starts()) >= 57, "a full burst during the outage"
    assert max(excesses(fleet).values()) < 1e-6
    assert fleet.starts()[-1][0] <= 50 + (300 - 60) / 5 + QUIET + 1, "and no token is lost"


def test_a_store_that_lost_its_data_is_charged_and_one_that_has_less_is_left_empty():
    levels = [Level("all", "all", Limit(10, 1)), Level("queue", "q:q", Limit(10, 1))]
    store = MemoryStore(FakeClock(1000.0))
    store.admit([AdmissionRequest(levels[1:], 7, (0,))], "").run()
    store.charge([(levels[0], 4.0), (levels[1], 4.0)]).run()
    now, (first, second) = store.peek(levels)
    assert [
        tokens_at(level.limit, state.full_at, now) for level, state in zip(levels, (first, second), strict=True)
    ] == [6, 0]


def test_an_outage_goes_on_while_the_connection_to_the_broker_is_lost_and_made_again():
    jobs = [Job(duration=0.01, acks_late=True) for _ in range(200)]
    fleet = local_fleet({"all": Limit(8, 10)}, jobs, workers=2, store_down=[(3, 12)])
    for at in (5, 7, 9):
        fleet.at(at, fleet.workers[0].lose_connection)
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert max(excesses(fleet).values()) < 1e-6
    assert sum(3.2 < at < 12 for at, _ in fleet.starts()) >= 0.9 * 9 * 10


def test_many_levels_are_charged_in_several_calls():
    limit = Limit(2, 0.5)
    jobs = [Job(at=4, tenant=f"t{number}", duration=0.001) for number in range(700)]
    fleet = local_fleet({"tenants": {"*": limit}}, jobs, workers=1, slots=50, store_down=[(3, 7)])
    fleet.run(8)
    assert all(is_local(job) for job in jobs)
    now, states = fleet.store.peek([level for job in jobs for level in fleet.workers[0].path(job)])
    assert max(tokens_at(limit, state.full_at, now) for state in states) <= 2 - 1 + 1 * limit.fill_rate


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    tables,
    workloads(["retry"], ["retry", "hold"], ["retry", "park"]),
    st.integers(1, 4),
    st.sampled_from([1, 4]),
    st.sampled_from([2, 16]),
    st.tuples(st.floats(0, 20), st.floats(0.01, 20)).map(lambda pair: (pair[0], sum(pair))),
    st.booleans(),
    st.sampled_from([0.0, 0.002]),
    restarts,
)
def test_under_any_workload_the_fleet_exceeds_no_limit_and_loses_no_task(  # noqa: PLR0913, PLR0917
    limits, jobs, workers, slots, prefetch, outage, lost_replies, latency, restarts
):
    options = {"slots": slots, "prefetch": prefetch, "lost_replies": lost_replies, "latency": latency}
    options["parks"] = any(job.on_limit == "park" for job in jobs)
    fleet = local_fleet(limits, jobs, workers=workers, store_down=[outage], **options)
    for number, at in restarts:
        fleet.restart(fleet.workers[number % workers], at, 5.0)
    fleet.run_out(4000)
    assert not fleet.lost()
    assert [job for job in jobs if len(job.starts) + len(job.errors) > 1 + job.allowed_repeats] == []
    for job in jobs:
        for error in job.errors:
            is_too_expensive = any(job.cost > level.limit.capacity for level in fleet.workers[0].path(job))
            assert isinstance(error, CostExceedsCapacity if is_too_expensive else ThrottleTimeout)
    for key, excess in excesses(fleet, until=outage[1]).items():
        assert excess < 1e-5, key
    limits = {key: limit for key, (limit, _) in starts_by_limit(fleet).items()}
    for key, excess in excesses(fleet).items():
        # Once at the return, and what workers that did not notice the outage start before the others notice its end.
        assert excess <= limits[key].capacity + limits[key].fill_rate * FIRST_PAUSE + 1e-5, key
    for worker in fleet.workers:
        assert not worker.held
        assert max(Counter(int(at) for at in worker.calls).values(), default=0) <= 2 * len(jobs) + 60
        assert max(worker.rounds.values(), default=0) <= 10 * len(jobs) + 60


# Costs


@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
def test_a_task_that_costs_more_than_a_share_waits_for_the_store_and_delays_no_other(level):
    limit = Limit(8, 4)
    table = {level: limit if level == "all" else {"*" if level != "tasks" else "f": limit}}
    expensive = [Job(at=5, cost=5, tenant="a") for _ in range(20)]
    cheap = [Job(at=6 + number / 2, cost=1, tenant="a") for number in range(20)]
    fleet = play(table, [*expensive, *cheap], store_down=[(4.9, 40)], prefetch=4)
    assert_all_ran_once(fleet)
    assert all(is_local(job) and job.starts[0] <= job.at + 1.6 for job in cheap)
    assert min(job.starts[0] for job in expensive) > 40
    assert max(job.deliveries for job in expensive) <= 1 + 4 + 2, "one more every ten seconds"


def test_a_task_that_costs_more_than_a_share_stays_held_if_the_broker_does_not_take_it():
    jobs = [Job(at=5, cost=5), *(Job(at=6, cost=1) for _ in range(5))]
    fleet = play({"queues": {"*": Limit(8, 4)}}, jobs, store_down=[(4.9, 40)], broker_down=[(0, 4000)])
    assert_all_ran_once(fleet)
    assert jobs[0].starts[0] > 40
    assert max(worker_rounds for worker in fleet.workers for worker_rounds in worker.rounds.values()) < 60


@pytest.mark.parametrize("workers", [1, 3, 7, 10, 49, 98])  # 49 × (1 / 49) is below 1 in floating point
def test_as_many_workers_as_the_capacity_has_tokens_may_each_start_a_task(workers):
    fleet = play({"queues": {"*": Limit(workers, 1000)}}, [Job(at=1)], workers=workers, store_down=[(0.5, 60)])
    assert is_local(fleet.jobs[0])


# Maximum wait, reservations


def test_a_task_fails_by_its_max_wait_under_the_share():
    jobs = [Job(at=5, max_wait=2.0, tenant="a") for _ in range(40)]
    fleet = play({"tenants": {"*": Limit(4, 4)}}, jobs, workers=1, local_share=0.5, store_down=[(4.9, 30)])
    assert not fleet.lost()
    assert {type(error) for job in jobs for error in job.errors} == {ThrottleTimeout}
    assert 3 <= sum(bool(job.starts) for job in jobs) <= 5


@pytest.mark.parametrize("level", ["queues", "tenants"])
def test_reservations_made_before_an_outage_are_used_after_it_and_local_ones_are_forgotten(level):
    jobs = [Job(tenant="a", on_limit="hold") for _ in range(40)]
    fleet = play({level: {"*": Limit(1, 1)}}, jobs, workers=1, local_share=1.0, store_down=[(3.5, 10)])
    assert_all_ran_once(fleet)
    assert [job for _, job in fleet.starts()] == jobs, "in their order, before, during and after"
    # Four seconds at most without a start: the first one of an empty bucket, and the quiet time.
    assert fleet.starts()[-1][0] <= 39 + 1 + QUIET + 2
    assert not [key for key in fleet.workers[0].admission._hold_queues._queues if key.startswith("local/")]


def test_local_reservations_leave_no_worker():
    jobs = [Job(at=2, tenant="a") for _ in range(60)]
    fleet = local_fleet({"tenants": {"*": Limit(4, 4)}}, jobs, store_down=[(1, 30)], max_hold=3)
    fleet.run(20)
    fleet.restart(fleet.workers[0], 21, 1.0)
    fleet.run_out(4000)
    assert_all_ran_once(fleet)
    assert sum(worker.stats.requeued for worker in fleet.workers) > 0
    assert max(excesses(fleet, until=30).values()) < 1e-6
    task = PendingTask(None, "q", 0.0, 5.0, {"q:q/t:a": 7, "local/1/q:q/t:a": 9})
    assert task.ticket() == Ticket({"q:q/t:a": 7}, 5.0)


# Parking


def test_parked_tasks_stay_in_the_store_and_new_ones_go_by_the_share():
    limits = {"queues": {"*": Limit(4, 4)}}
    jobs = [Job(tenant="a", on_limit="park") for _ in range(100)]
    fresh = [Job(at=8 + number, tenant="b", on_limit="park") for number in range(20)]
    redelivered = Job(at=9, tenant="c", on_limit="park")
    fleet = local_fleet(limits, [*jobs, *fresh], parks=True, store_down=[(5, 30)], workers=2)
    fleet.run(4.9)
    backlog = fleet.store.backlogs.view("q").lanes[0].count
    assert backlog > 50
    fleet.send(redelivered)
    fleet.at(9.0, lambda: [fleet.redeliver([delivery]) for delivery in list(fleet.queues["q"])])
    fleet.run(29.9)
    assert fleet.store.backlogs.view("q").lanes[0].count == backlog, "nothing was dispatched or parked"
    during = [job for at, job in fleet.starts() if 5.1 < at < 29.9]
    assert set(during) <= {*fresh, redelivered}
    assert len(during) >= 18
    fleet.run_out(4000)
    assert_all_ran_once(fleet)
    assert max(excesses(fleet, until=30).values()) < 1e-6


def test_a_task_that_waits_for_a_slot_during_an_outage_is_not_parked():
    jobs = [Job(at=4, duration=0.5, on_limit="park") for _ in range(20)]
    options = {"workers": 1, "slots": 1, "parks": True, "prefetch": 64}
    fleet = play({"queues": {"*": Limit(50, 50)}}, [Job(at=3.1), *jobs], store_down=[(3, 30)], **options)
    assert_all_ran_once(fleet)
    assert max(job.starts[0] for job in jobs) <= 4 + 20 * 0.5 + 1


# The share


def local_limits(**options):
    return LocalLimits(Settings(on_store_error="local", **options))


def test_the_default_share_is_one_over_the_largest_number_of_workers_of_late():
    local = local_limits()
    shares = []
    for count in (3, 4, 4, 1, 4, 2, 2, 2):
        local.record_workers(count)
        shares.append(local.share)
    assert shares == [None, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 2]


def test_a_given_share_needs_no_count():
    assert local_limits(local_share=0.2).share == 0.2


@pytest.mark.parametrize("policy", ["hold", "admit", "refuse"])
def test_other_policies_have_no_local_buckets(policy):
    local, breaker = LocalLimits(Settings(on_store_error=policy, local_share=0.5)), CircuitBreaker()
    local.prepare(breaker)
    breaker.record_failure(1.0)
    assert not local.follow(breaker, 1.0)
    assert not local.is_active


def test_tasks_are_held_while_the_number_of_workers_is_unknown():
    jobs = [Job(at=number / 10) for number in range(100)]
    fleet = play({"queues": {"*": Limit(5, 10)}}, jobs, local_share=None, store_down=[(2, 20)])
    assert_all_ran_once(fleet)
    assert not [at for at, _ in fleet.starts() if 2 < at < 20]


def test_a_share_that_becomes_known_counts_from_the_next_failure_on():
    fleet = local_fleet({"queues": {"*": Limit(5, 10)}}, [Job() for _ in range(100)], workers=1, local_share=None)
    fleet.store_down = [(2, 20)]
    local = fleet.workers[0].local
    fleet.at(10, lambda: [local.record_workers(2) for _ in range(2)])
    fleet.run_out(200)
    assert_all_ran_once(fleet)
    assert not [at for at, _ in fleet.starts() if 2.1 < at < 10]
    assert 0.9 * 5 * 9 <= sum(10 < at < 20 for at, _ in fleet.starts()) <= 5 * 10 + 1


def test_the_store_is_probed_every_half_second_and_the_log_has_one_line_for_each_outage(caplog):
    caplog.set_level(logging.WARNING, "bucketflow_celery.admission")
    jobs = [Job(at=number / 10, cost=1 + 3 * (number == 30)) for number in range(300)]
    outages = [(2, 12), (20, 24)]
    fleet = play({"queues": {"*": Limit(5, 20)}}, jobs, workers=1, local_share=0.5, store_down=outages)
    assert_all_ran_once(fleet)
    assert len([at for at in fleet.workers[0].calls if 2.1 <= at < 12]) <= 20
    said = Counter(record.getMessage().partition(":")[0].partition(",")[0] for record in caplog.records)
    assert said == {
        "store unavailable": 2,
        "this worker starts tasks by its own buckets until the store answers": 2,
        "tasks whose cost is above this worker's share of a capacity wait until the store answers": 1,
        "store answers again": 2,
    }


def test_a_pause_holds_during_an_outage():
    jobs = [Job(at=number / 10, tenant="ab"[number % 2]) for number in range(100)]
    fleet = local_fleet({"queues": {"*": Limit(5, 20)}}, jobs, workers=1, store_down=[(2, 12)])
    fleet.at(1.0, partial(fleet.store.pause, "tenant:a", paused=True))
    fleet.at(15.0, partial(fleet.store.pause, "tenant:a", paused=False))
    fleet.run_out()
    assert_all_ran_once(fleet)
    assert {job.tenant for at, job in fleet.starts() if 2 < at < 12} == {"b"}
