"""Which queues live workers serve, and which queues are reported because none does."""

from __future__ import annotations

import pytest

from bucketflow_celery.scheduling.serving import REPORT_INTERVAL, ServedQueues

SECOND = 1_000_000
DAY = 86_400 * SECOND
STORY = [
    # at (s), worker, its queues, live workers, parked queues, reported
    (0, "a", "x", "a", "x", []),
    (10, "a", "x", "a", "xy", []),  # y has been without a worker for less than the grace period
    (12, "a", "x", "a", "xy", []),  # checked a moment ago
    (16, "a", "x", "a", "xy", ["y"]),
    (30, "b", "z", "ab", "xy", []),  # reported a moment ago, whichever worker asks
    (40, "b", "yz", "ab", "xy", []),  # it is served
    (50, "b", "", "ab", "xy", []),  # b has left it
    (60, "a", "x", "a", "xy", ["y"]),
    (70, "a", "x", "", "xy", []),  # a has lost its lease
    (80, "c", "z", "c", "xy", ["x"]),
    (90, "c", "z", "c", "", []),  # nothing is parked any more
    (100, "c", "z", "c", "x", []),  # a new backlog has a grace period of its own
    (106, "c", "z", "c", "x", ["x"]),
]


def test_a_queue_is_reported_once_it_has_had_no_live_worker_for_a_while():
    served = ServedQueues()
    for at, worker, queues, live, parked, reported in STORY:
        now = DAY + at * SECOND
        assert served.announce(worker, tuple(queues), parked, live.__contains__, now) == reported, at


def test_a_report_is_repeated_as_long_as_the_queue_has_no_worker():
    served, reports = ServedQueues(), []
    for at in range(0, 3600, 6):
        reports += served.announce("a", ["x"], ["y"], lambda _worker: True, DAY + at * SECOND)
    assert len(reports) == 3600 * SECOND // REPORT_INTERVAL


@pytest.mark.parametrize(("queue", "live", "serves"), [("x", "a", True), ("y", "a", False), ("x", "b", False)])
def test_only_live_workers_serve(queue, live, serves):
    served = ServedQueues()
    served.announce("a", ["x", "z"], [], lambda _worker: True, DAY)
    assert served.serves(queue, live.__contains__) is serves


def test_a_clock_that_steps_back_reports_nothing_too_early_and_nothing_never():
    served, live = ServedQueues(), "a".__contains__
    assert served.announce("a", ["x"], ["y"], live, DAY) == []
    assert served.announce("a", ["x"], ["y"], live, DAY - 3600 * SECOND) == []
    assert served.announce("a", ["x"], ["y"], live, DAY - 3594 * SECOND) == ["y"]
