"""Round trips of admission: tasks admitted per call, and when a worker calls again."""

from __future__ import annotations

import random

import pytest
from simulation import Fleet, Job

from bucketflow_celery import Limit
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.memory_backlog import MemoryStoreCall


def admissions(fleet):
    """Return how many tasks each call of a recorded *fleet* admitted, in order."""
    return [sum(decision.admitted for decision in decisions) for _, _, decisions in fleet.admit_calls if decisions]


def recorded(fleet):
    """Record the admission calls of *fleet*: µs, requests, and decisions; ``None`` if the limits were stale."""
    admit, fleet.admit_calls = fleet.store.admit, []

    def record(requests, version):
        def run():
            reply = admit(requests, version).run()
            decisions = None if isinstance(reply, StaleLimits) else reply
            fleet.admit_calls.append((fleet.clock.now(), requests, decisions))
            return reply

        return MemoryStoreCall(run)

    fleet.store.admit = record
    return fleet


# Batches


def test_one_round_trip_admits_all_tasks_received_since_the_previous_one():
    fleet = recorded(Fleet({"queues": {"*": "100000/s"}}, slots=200, prefetch=200, latency=0.01))
    for number in range(100):
        fleet.send(Job(at=1.0005 + number / 1000, duration=1))
    fleet.run(10)
    # The first task makes the worker check the limits. A task arrives each ms, and a round trip takes 10 ms.
    assert admissions(fleet) == [11, *[10] * 8, 9]


def test_one_round_trip_admits_for_all_slots_freed_since_the_previous_one():
    fleet = recorded(Fleet({"queues": {"*": "100000/s"}}, slots=100, prefetch=1000, latency=0.01))
    for number in range(1000):
        fleet.send(Job(duration=0.1 + number % 100 / 1000))
    fleet.run(10)
    assert not fleet.lost()
    # All slots are free at first. Then one becomes free each ms, and a round trip takes 10 ms.
    assert sum(admissions(fleet)) == 1000
    assert len(admissions(fleet)) < 1000 / 5


@pytest.mark.parametrize("slots", [4, 16, 64])
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
def test_admissions_per_round_trip_exceed_one_under_load(on_limit, slots):
    rng = random.Random(4)
    fleet = Fleet({"all": "100000/s"}, slots=slots, prefetch=4 * slots, latency=0.002, parks=on_limit == "park")
    for _ in range(500):
        fleet.send(Job(duration=rng.uniform(0.005, 0.015), on_limit=on_limit))
    fleet.run(60)
    assert not fleet.lost()
    stats = fleet.workers[0].stats
    assert stats.admitted == len(fleet.jobs)
    assert stats.admitted > stats.round_trips


# Retries


@pytest.mark.parametrize("latency", [0.0, 0.004])
@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
def test_a_level_that_refused_until_t_is_not_requested_before_t(on_limit, level, latency):
    limits = {level: Limit(2, 5)} if level == "all" else {level: {"*": Limit(2, 5)}}
    fleet = recorded(Fleet(limits, slots=4, prefetch=50, latency=latency, parks=on_limit == "park"))
    tenants = 60 if level in {"all", "queues"} else 2
    for number in range(120):
        fleet.send(Job(at=number / 20, tenant=f"t{number % tenants}", on_limit=on_limit))
    fleet.run_out()
    assert not fleet.lost()
    refused_until = {}
    for now, requests, decisions in fleet.admit_calls:
        for request in requests:
            for refused, reserved_until in zip(request.path, request.reservations, strict=True):
                assert now >= reserved_until, "the reservation is not due"
                # A refusing tenant or task type gives each new task a reservation of its own, unless tasks are parked.
                if on_limit == "park" or refused.blocks_queue:
                    assert now >= refused_until.get(refused.key, 0)
        for request, decision in zip(requests, decisions or (), strict=bool(decisions)):
            if decision.binding is not None:
                refused_until[request.path[decision.binding].key] = now + decision.wait
    assert refused_until
