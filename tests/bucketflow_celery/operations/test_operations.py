"""Operations on parked tasks: backlog report, purge, pause and resume."""

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
    throttle = Throttle(app, store=MemoryStore(clock), limits={"queues": {"q": "10/s"}, "weights": {"b": 4}})

    @app.task(name="slow", shared=False)
    def slow():
        pass

    slow.bucketflow = TaskRules(limit=Limit(1, 1))
    return throttle


def serve(throttle, *queues):
    """Let a live worker serve *queues*."""
    throttle.store.backlogs.renew("w", 1000).run()
    throttle.store.backlogs.announce("w", queues).run()


def park(throttle, queue, *lanes):
    messages = [ParkedMessage(f"{queue} {number} {lane}".encode(), lane, b"") for number, lane in enumerate(lanes)]
    throttle.store.backlogs.park(queue, messages, 1000, busy=False).run()


A, B, NO_TENANT = Lane("a", "f"), Lane("b", "f"), Lane("", "f")


# Backlog


def test_without_parked_tasks_the_backlog_is_empty(throttle):
    assert throttle.backlog() == {}


def test_the_backlog_counts_ages_and_drain_times_by_queue_and_tenant(throttle, clock):
    serve(throttle, "q", "r")
    park(throttle, "q", *[A] * 30)
    clock.advance(7)
    park(throttle, "q", *[B] * 10, NO_TENANT)
    park(throttle, "r", A)
    report = throttle.backlog()
    assert list(report) == ["q", "r"]
    assert {name: (tenant.count, tenant.oldest) for name, tenant in report["q"].tenants.items()} == {
        "": (1, 0),
        "a": (30, 7),
        "b": (10, 0),
    }
    assert (report["q"].queue, report["q"].count, report["q"].oldest) == ("q", 41, 7)
    assert report["q"].drain == pytest.approx(4.1)
    assert report["q"].tenants["b"].drain == pytest.approx(10 * 6 / 4 / 10)
    assert (report["r"].count, report["r"].drain) == (1, 0)


def test_drain_times_follow_the_limits_of_decorators_and_of_the_fleet(throttle):
    serve(throttle, "r")
    park(throttle, "r", *[Lane("a", "slow")] * 30)
    assert throttle.backlog()["r"].drain == pytest.approx(30)
    throttle.set_limits({"tasks": {"slow": "10/s"}})
    assert throttle.backlog()["r"].drain == pytest.approx(3)
    throttle.pause(queue="r")
    assert throttle.backlog()["r"].drain == inf


def test_the_backlog_of_a_queue_that_no_live_worker_serves_has_no_drain_time_but_a_reason(throttle, clock):
    park(throttle, "q", A, B)
    park(throttle, "r", A)
    serve(throttle, "r")
    report = throttle.backlog()["q"]
    assert (report.count, report.drain, report.reason) == (2, None, "no live worker serves the queue")
    assert {tenant.drain for tenant in report.tenants.values()} == {None}
    assert (throttle.backlog()["r"].drain, throttle.backlog()["r"].reason) == (0, None)
    serve(throttle, "q", "r")
    assert throttle.backlog()["q"].reason is None
    clock.advance(1001)  # the lease of the worker has expired
    assert throttle.backlog()["q"].drain is None


# Move


def lanes_of(throttle, queue):
    return {view.lane: view.count for view in throttle.store.backlogs.view(queue).lanes}


@pytest.mark.parametrize(
    ("filters", "moved"),
    [
        ({}, {A: 2, B: 1, NO_TENANT: 1}),
        ({"tenant": "a"}, {A: 2}),
        ({"tenant": ""}, {NO_TENANT: 1}),
        ({"task": "f"}, {A: 2, B: 1, NO_TENANT: 1}),
        ({"tenant": "unknown"}, {}),
    ],
)
def test_move_moves_the_parked_tasks_that_match_to_another_queue(throttle, filters, moved):
    park(throttle, "q", A, A, B, NO_TENANT)
    park(throttle, "r", A)
    assert throttle.move("q", "r", **filters) == sum(moved.values())
    assert lanes_of(throttle, "r") == {**moved, A: moved.get(A, 0) + 1}
    assert sum(lanes_of(throttle, "q").values()) == 4 - sum(moved.values())
    assert throttle.move("q", "r", **filters) == 0, "a move can be repeated"


@pytest.mark.parametrize("to", ["q", "", None, 3])
def test_move_names_a_target_that_is_no_other_queue(throttle, to):
    with pytest.raises(ConfigError, match="to"):
        throttle.move("q", to)


# Purge

LANES = [A, A, B, NO_TENANT, Lane("a", "g"), Lane("a", "f", 5)]
PURGES = [
    # filter, tasks purged
    ({}, 6),
    ({"tenant": "a"}, 4),
    ({"tenant": ""}, 1),
    ({"task": "f"}, 5),
    ({"tenant": "a", "task": "f"}, 3),
    ({"tenant": "unknown"}, 0),
]


@pytest.mark.parametrize(("which", "count"), PURGES)
def test_a_purge_deletes_the_tasks_that_match_and_no_others(throttle, which, count):
    park(throttle, "q", *LANES)
    park(throttle, "r", *LANES)
    assert throttle.purge("q", **which) == count
    assert sum(queue.count for queue in throttle.backlog().values()) == 2 * len(LANES) - count
    assert throttle.purge("q", **which) == 0


def test_a_purge_of_an_empty_queue_deletes_nothing(throttle):
    assert throttle.purge("other") == 0


# Pauses

NAMES = [({}, "all:"), ({"queue": "q"}, "queue:q"), ({"tenant": "a"}, "tenant:a"), ({"task": "f"}, "task:f")]


@pytest.mark.parametrize(("target", "name"), NAMES)
def test_a_pause_lasts_until_resume_and_both_are_idempotent(throttle, target, name):
    throttle.pause(**target)
    throttle.pause(**target)
    assert throttle.paused() == [name]
    throttle.set_limits({"all": "1/s"})
    assert throttle.paused() == [name], "new limits end no pause"
    throttle.resume(**target)
    assert throttle.paused() == []
    throttle.resume(**target)
    assert throttle.paused() == []


def test_pauses_are_independent(throttle):
    for target, _ in NAMES:
        throttle.pause(**target)
    assert throttle.paused() == sorted(name for _, name in NAMES)
    throttle.resume()
    assert throttle.paused() == ["queue:q", "task:f", "tenant:a"]


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize(
    ("target", "names"),
    [
        ({"queue": "q", "tenant": "a"}, "queue, tenant"),
        ({"queue": "q", "task": "f"}, "queue, task"),
        ({"queue": "q", "tenant": "a", "task": "f"}, "queue, tenant, task"),
    ],
)
def test_a_pause_names_at_most_one_level(throttle, verb, target, names):
    with pytest.raises(ConfigError, match="one of them, or none") as caught:
        getattr(throttle, verb)(**target)
    assert caught.value.value == names
    assert throttle.paused() == []


@pytest.mark.parametrize("verb", ["pause", "resume"])
@pytest.mark.parametrize("level", ["queue", "tenant", "task"])
@pytest.mark.parametrize("wrong", ["", 7, ["a"]])
def test_a_pause_of_what_is_no_name_is_an_error(throttle, verb, level, wrong):
    with pytest.raises(ConfigError, match=f"^{level} is .*a non-empty string"):
        getattr(throttle, verb)(**{level: wrong})
