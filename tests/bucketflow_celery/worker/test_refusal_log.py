"""The log line that sums up refusals: each refusal within ten seconds, and at most one line in ten seconds."""

from __future__ import annotations

import logging
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow_celery.worker.refusal_log import LOG_INTERVAL, RefusalLog


class World:
    """A log on a fake clock."""

    def __init__(self):
        self.now = 0.0
        self.timers = []  # when, and what to call
        self.log = RefusalLog(self.call_after)

    def call_after(self, seconds, callback):
        self.timers.append((self.now + seconds, callback))

    def run_until(self, now):
        while due := sorted((timer for timer in self.timers if timer[0] <= now), key=lambda timer: timer[0]):
            self.timers.remove(due[0])
            self.now, callback = due[0]
            callback()
        self.now = now

    def refuse(self, at, key="q:q", wait=1.0):
        self.run_until(at)
        self.log.add(key, wait)


@pytest.fixture
def world():
    return World()


@pytest.fixture(autouse=True)
def _info(caplog):
    caplog.set_level(logging.INFO)


def test_all_of_a_burst_are_said_in_one_line(world, caplog):
    for number in range(300):
        world.refuse(100 + number * 0.003, "q:celery/t:acme", 3600.0)
    world.run_until(110)
    assert caplog.messages == ["throttled 300 task(s): q:celery/t:acme 300 (longest wait 3600.0 s)"]


def test_a_line_names_the_five_buckets_that_refused_most(world, caplog):
    for number in range(50):
        world.refuse(number / 10, f"q:q/t:{number % 7}", number / 10)
    world.run_until(20)
    [line] = caplog.messages
    assert line.startswith("throttled 50 task(s): q:q/t:0 8 (longest wait 4.9 s), ")
    assert line.count("longest wait") == 5


def test_without_refusals_there_is_neither_a_line_nor_a_timer(world, caplog):
    assert world.timers == []
    world.refuse(1)
    world.run_until(1000)
    assert len(caplog.messages) == 1
    assert world.timers == []


def test_the_last_refusals_are_said_when_the_worker_stops(world, caplog):
    world.refuse(1)
    world.refuse(2)
    world.log.flush()
    assert caplog.messages == ["throttled 2 task(s): q:q 2 (longest wait 1.0 s)"]
    world.run_until(1000)
    assert len(caplog.messages) == 1


@given(st.lists(st.integers(0, 30), min_size=1))
def test_every_refusal_is_said_once_within_ten_seconds_in_lines_ten_seconds_apart(pauses):
    world, said, at, times = World(), [], 0, []

    class Lines(logging.Handler):
        def emit(self, record):
            said.append((world.now, int(re.search(r"throttled (\d+)", record.getMessage())[1])))

    handler = Lines()
    logger = logging.getLogger("bucketflow_celery.worker")
    logger.addHandler(handler)
    try:
        for pause in pauses:
            at += pause
            world.refuse(at)
            times.append(at)
        world.run_until(at + 1000)
    finally:
        logger.removeHandler(handler)
    assert sum(count for _, count in said) == len(times)
    unsaid = list(times)
    for line_at, count in said:
        covered, unsaid = unsaid[:count], unsaid[count:]
        assert all(refused_at <= line_at <= refused_at + LOG_INTERVAL for refused_at in covered)
    assert all(later - earlier >= LOG_INTERVAL for (earlier, _), (later, _) in pairwise(said))
