"""How seldom a worker asks the store: what one round trip admits, and when it asks again."""

from __future__ import annotations

import random

import pytest
from simulation import Fleet, Job

from bucketflow_celery import Limit
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.memory_backlog import MemoryStoreCall


def admissions(fleet):
    """Return how many tasks each question of the fleet admitted, in order."""
    return [sum(answer.admitted for answer in answers) for _, _, answers in fleet.questions if answers]


def recorded(fleet):
    """Have *fleet* take down its questions: when, in µs, with which tasks, and the answers."""
    admit, fleet.questions = fleet.store.admit, []

    def record(requests, version):
        def run():
            reply = admit(requests, version).run()
            decisions = None if isinstance(reply, StaleLimits) else reply
            fleet.questions.append((fleet.clock.now(), requests, decisions))
            return reply

        return MemoryStoreCall(run)

    fleet.store.admit = record
    return fleet


# One round trip admits what has been received since the last


def test_one_round_trip_admits_what_has_been_received_since_the_last():
    fleet = recorded(Fleet({"queues": {"*": "100000/s"}}, slots=200, prefetch=200, latency=0.01))
    for number in range(100):
        fleet.send(Job(at=1.0005 + number / 1000, duration=1))
    fleet.run(10)
    # When the first comes the worker looks for new limits; from then on one comes each ms, and an answer takes ten.
    assert admissions(fleet) == [11, *[10] * 8, 9]


def test_one_round_trip_admits_for_all_slots_that_got_free_since_the_last():
    fleet = recorded(Fleet({"queues": {"*": "100000/s"}}, slots=100, prefetch=1000, latency=0.01))
    for number in range(1000):
        fleet.send(Job(duration=0.1 + number % 100 / 1000))
    fleet.run(10)
    assert not fleet.lost()
    # All slots at first; then one gets free each ms, and an answer takes ten.
    assert sum(admissions(fleet)) == 1000
    assert len(admissions(fleet)) < 1000 / 5


@pytest.mark.parametrize("slots", [4, 16, 64])
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
def test_admissions_per_round_trip_exceed_one_under_load(on_limit, slots):
    dice = random.Random(4)
    fleet = Fleet({"all": "100000/s"}, slots=slots, prefetch=4 * slots, latency=0.002, parks=on_limit == "park")
    for _ in range(500):
        fleet.send(Job(duration=dice.uniform(0.005, 0.015), on_limit=on_limit))
    fleet.run(60)
    assert not fleet.lost()
    stats = fleet.workers[0].stats
    assert stats.admitted == len(fleet.jobs)
    assert stats.admitted > stats.round_trips


# A level that said "not before t" is not asked again before t


@pytest.mark.parametrize("latency", [0.0, 0.004])
@pytest.mark.parametrize("level", ["all", "queues", "tenants", "tasks"])
@pytest.mark.parametrize("on_limit", ["retry", "hold", "park"])
def test_a_level_that_said_not_before_t_is_not_asked_again_before_t(on_limit, level, latency):
    limits = {level: Limit(2, 5)} if level == "all" else {level: {"*": Limit(2, 5)}}
    fleet = recorded(Fleet(limits, slots=4, prefetch=50, latency=latency, parks=on_limit == "park"))
    tenants = 60 if level in {"all", "queues"} else 2
    for number in range(120):
        fleet.send(Job(at=number / 20, tenant=f"t{number % tenants}", on_limit=on_limit))
    fleet.run_out()
    assert not fleet.lost()
    told = {}
    for now, asks, answers in fleet.questions:
        for ask in asks:
            for one, due in zip(ask.path, ask.reservations, strict=True):
                assert now >= due, "its place has not come"
                # A tenant or task that refuses gives each who comes a place of its own, once, except to the parked.
                if on_limit == "park" or one.blocks_queue:
                    assert now >= told.get(one.key, 0)
        for ask, answer in zip(asks, answers or (), strict=bool(answers)):
            if answer.binding is not None:
                told[ask.path[answer.binding].key] = now + answer.wait
    assert told
