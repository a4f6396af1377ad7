"""Priorities in simulated fleets: of the tasks that wait in one worker for one level, the most urgent starts first."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation import Fleet, Job

from bucketflow.testing import worst_excess
from bucketflow_celery import Limit

URGENT, USUAL = 0, 9
LEVELS = {
    "all": {"all": "1/s"},
    "queue": {"queues": {"*": Limit(1, 1)}},
    "tenant": {"tenants": {"*": Limit(1, 1)}},
    "task": {"tasks": {"*": Limit(1, 1)}},
}


def play(limits, jobs, until=200.0, **options):
    fleet = Fleet(limits, **options)
    for job in jobs:
        fleet.send(job)
    fleet.run(until)
    assert not fleet.lost()
    assert not fleet.more_than_once()
    for level, starts in fleet.starts_by_bucket().values():
        assert worst_excess(starts, level.limit) < 1e-6
    return fleet


def usual(count=20, **options):
    return [Job(tenant="a", rank=USUAL, **options) for _ in range(count)]


@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("read_seconds", [0.0, 0.004])
def test_an_urgent_task_takes_the_next_start_of_its_level(level, on_limit, read_seconds):
    backlog = usual(on_limit=on_limit)
    urgent = [Job(2.2 + 0.1 * number, tenant="a", rank=URGENT, on_limit=on_limit) for number in range(3)]
    play({**LEVELS[level]}, [*backlog, *urgent], read_seconds=read_seconds, prefetch=64, parks=on_limit == "park")

    assert [job.starts[0] for job in urgent] == pytest.approx([3, 4, 5], abs=0.3)
    assert [job.starts[0] for job in backlog] == pytest.approx([0, 1, 2, *range(6, 23)], abs=0.3), "in order, none idle"


@pytest.mark.parametrize("on_limit", ["retry", "hold"])
@given(
    sent=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3)), min_size=1, max_size=30),
    read_seconds=st.sampled_from([0.0, 0.001]),
)
def test_no_task_starts_while_a_more_urgent_one_waits(on_limit, read_seconds, sent):
    jobs = [Job(at, tenant="a", rank=rank, on_limit=on_limit) for at, rank in sent]
    play(LEVELS["tenant"], jobs, read_seconds=read_seconds, prefetch=64)

    for job in jobs:
        more_urgent = [other for other in jobs if other.rank < job.rank and other.at < job.starts[0] - 0.1]
        assert all(other.starts[0] <= job.starts[0] for other in more_urgent)
    ideal = -1.0
    for at, _ in sorted(sent):
        ideal = max(ideal + 1, at)
    assert max(job.starts[0] for job in jobs) <= ideal + 0.5


def test_tasks_without_priorities_keep_their_order_and_cause_no_further_calls():
    def calls(rank):
        jobs = [Job(0.01 * number, tenant="a", rank=rank) for number in range(40)]
        fleet = play(LEVELS["tenant"], jobs)
        starts = [job.starts[0] for job in jobs]
        assert starts == sorted(starts)
        return fleet.workers[0].stats.round_trips

    assert calls(URGENT) == calls(USUAL)


def test_a_task_gives_way_only_if_it_can_start_in_time():
    backlog = usual(10, max_wait=10.0)
    urgent = Job(2.2, tenant="a", rank=URGENT)
    play(LEVELS["tenant"], [*backlog, urgent])

    assert [len(job.errors) for job in backlog] == [0] * 10
    assert max(job.starts[0] for job in backlog) <= 10.5


def test_a_task_of_another_cost_keeps_its_own_reservation():
    backlog = usual(10)
    urgent = Job(2.2, tenant="a", rank=URGENT, cost=2.0)
    play({"tenants": {"*": Limit(2, 1)}}, [*backlog, urgent])

    assert urgent.starts[0] >= max(job.starts[0] for job in backlog)


def test_an_urgent_task_that_was_revoked_wastes_no_start():
    backlog = usual(10)
    play(LEVELS["tenant"], [*backlog, Job(2.2, tenant="a", rank=URGENT, revoked_at=2.5)])

    assert [job.starts[0] for job in backlog] == pytest.approx(range(10), abs=0.3)


def test_priorities_of_one_tenant_do_not_delay_another():
    others = [Job(tenant="b", rank=USUAL) for _ in range(10)]
    play(LEVELS["tenant"], [*usual(10), *others, Job(2.2, tenant="a", rank=URGENT)])

    assert [job.starts[0] for job in others] == pytest.approx(range(10), abs=0.3)


def test_several_workers_start_an_urgent_task_no_later_than_its_own_reservation():
    backlog = usual(40)
    urgent = [Job(2.2, tenant="a", rank=URGENT) for _ in range(4)]
    play(LEVELS["tenant"], [*backlog, *urgent], workers=2)

    assert max(job.starts[0] for job in urgent) <= 12
    assert max(job.starts[0] for job in backlog) == pytest.approx(43, abs=1)
