"""What is parked, seen and acted on from outside: backlog, purge, pause and resume."""

from __future__ import annotations

from math import inf

import pytest
from celery import Celery

from bucketflow import ConfigError
from bucketflow.testing import FakeClock
from bucketflow_celery import Limit, Throttle
from bucketflow_celery.config.rules import TaskRules
from bucketflow_celery.scheduling.model import Lane, ParkedMessage
from bucketflow_celery.testing import MemoryStore


@pytest.fixture
def clock():
    return FakeClock(1000.0)


@pytest.fixture
def throttle(clock):
    app = Celery("shop", set_as_current=False, broker="memory://")
    made = Throttle(app, store=MemoryStore(clock), limits={"queues": {"q": "10/s"}, "weights": {"b": 4}})

    @app.task(name="slow", shared=False)
    def slow():
        pass

    slow.bucketflow = TaskRules(limit=Limit(1, 1))
    return made


def park(throttle, queue, *lanes):
    parcels = [ParkedMessage(f"{queue} {number} {lane}".encode(), lane, b"") for number, lane in enumerate(lanes)]
    throttle.store.backlogs.park(queue, parcels, 1000, busy=False).run()


A, B, NOBODY = Lane("a", "f"), Lane("b", "f"), Lane("", "f")


# Backlog


def test_nothing_parked_is_nothing_to_see(throttle):
    assert throttle.backlog() == {}


def test_the_backlog_by_queue_and_tenant(throttle, clock):
    park(throttle, "q", *[A] * 30)
    clock.advance(7)
    park(throttle, "q", *[B] * 10, NOBODY)
    park(throttle, "r", A)
    seen = throttle.backlog()
    assert list(seen) == ["q", "r"]
    assert {name: (tenant.count, tenant.oldest) for name, tenant in seen["q"].tenants.items()} == {
        "": (1, 0),
        "a": (30, 7),
        "b": (10, 0),
    }
    assert (seen["q"].queue, seen["q"].count, seen["q"].oldest) == ("q", 41, 7)
    assert seen["q"].drain == pytest.approx(4.1)
    assert seen["q"].tenants["b"].drain == pytest.approx(10 * 6 / 4 / 10)
    assert (seen["r"].count, seen["r"].drain) == (1, 0)


def test_the_backlog_knows_the_limits_of_decorators_and_of_the_fleet(throttle):
    park(throttle, "r", *[Lane("a", "slow")] * 30)
    assert throttle.backlog()["r"].drain == pytest.approx(30)
    throttle.set_limits({"tasks": {"slow": "10/s"}})
    assert throttle.backlog()["r"].drain == pytest.approx(3)
    throttle.pause(queue="r")
    assert throttle.backlog()["r"].drain == inf


# Purge

LANES = [A, A, B, NOBODY, Lane("a", "g"), Lane("a", "f", 5)]
PURGES = [
    # of what, how many that are
    ({}, 6),
    ({"tenant": "a"}, 4),
    ({"tenant": ""}, 1),
    ({"task": "f"}, 5),
    ({"tenant": "a", "task": "f"}, 3),
    ({"tenant": "nobody"}, 0),
]


@pytest.mark.parametrize(("which", "count"), PURGES)
def test_a_purge_forgets_what_it_names_and_no_more(throttle, which, count):
    park(throttle, "q", *LANES)
    park(throttle, "r", *LANES)
    assert throttle.purge("q", **which) == count
    assert sum(queue.count for queue in throttle.backlog().values()) == 2 * len(LANES) - count
    assert throttle.purge("q", **which) == 0


def test_an_empty_queue_can_be_purged(throttle):
    assert throttle.purge("other") == 0


# Pauses

NAMES = [({}, "all:"), ({"queue": "q"}, "queue:q"), ({"tenant": "a"}, "tenant:a"), ({"task": "f"}, "task:f")]


@pytest.mark.parametrize(("what", "name"), NAMES)
def test_a_pause_lasts_until_it_is_resumed(throttle, what, name):
    throttle.pause(**what)
    throttle.pause(**what)
    assert throttle.paused() == [name]
    throttle.set_limits({"all": "1/s"})
    assert throttle.paused() == [name], "limits and pauses are told apart"
    throttle.resume(**what)
    assert throttle.paused() == []
    throttle.resume(**what)
    assert throttle.paused() == []


def test_each_pause_is_ended_by_itself(throttle):
    for what, _ in NAMES:
        throttle.pause(**what)
    assert throttle.paused() == sorted(name for _, name in NAMES)
    throttle.resume()
    assert throttle.paused() == ["queue:q", "task:f", "tenant:a"]


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ({"queue": "q", "tenant": "a"}, "queue, tenant"),
        ({"queue": "q", "task": "f"}, "queue, task"),
        ({"queue": "q", "tenant": "a", "task": "f"}, "queue, tenant, task"),
    ],
)
def test_a_pause_has_one_level(throttle, verb, what, named):
    with pytest.raises(ConfigError, match="one of them, or none") as caught:
        getattr(throttle, verb)(**what)
    assert caught.value.value == named
    assert throttle.paused() == []
