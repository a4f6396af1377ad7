"""The estimate of how long a message at the end of a queue takes to be delivered."""

from __future__ import annotations

import pytest

from bucketflow_celery.worker.queueing_delay import (
    MAX_SAMPLE_AGE,
    MAX_SECONDS_PER_MESSAGE,
    SAMPLE_INTERVAL,
    SECONDS_PER_COPY,
    SECONDS_PER_MESSAGE,
    QueueingDelay,
)


class Queue:
    """A queue of a given length, and a clock."""

    def __init__(self, length):
        self.length, self.now, self.counted, self.received = length, 100.0, 0, 0
        self.delay = QueueingDelay(self.count, lambda _name: self.received, lambda: self.now)

    def count(self, name):
        assert name == "q"
        self.counted += 1
        return self.length

    def read(self, messages, seconds):
        """Receive *messages* in *seconds*."""
        self.received += messages
        self.now += seconds


def test_an_empty_queue_has_no_delay():
    assert Queue(0).delay.of("q") == 0


def test_before_the_first_measurement_a_speed_is_assumed():
    assert Queue(1000).delay.of("q") == pytest.approx(1000 * (SECONDS_PER_MESSAGE + SECONDS_PER_COPY))


def test_the_estimate_follows_the_speed_of_this_worker():
    queue = Queue(1000)
    queue.delay.of("q")
    queue.read(250, 1.0)
    assert queue.delay.of("q") == pytest.approx(1000 * (1 / 250 + SECONDS_PER_COPY))


def test_a_worker_that_reads_nothing_expects_a_long_delay_but_no_endless_one():
    queue = Queue(10)
    queue.delay.of("q")
    queue.read(0, 2.0)
    assert queue.delay.of("q") == pytest.approx(10 * (MAX_SECONDS_PER_MESSAGE + SECONDS_PER_COPY))


def test_a_pause_says_nothing_about_the_speed():
    queue = Queue(1000)
    queue.delay.of("q")
    queue.read(1, MAX_SAMPLE_AGE + 1)
    assert queue.delay.of("q") == pytest.approx(1000 * (SECONDS_PER_MESSAGE + SECONDS_PER_COPY))


def test_the_messages_are_counted_at_intervals_only():
    queue = Queue(1000)
    for _ in range(100):
        queue.delay.of("q")
        queue.read(1, SAMPLE_INTERVAL / 50)
    assert queue.counted <= 3


def test_a_slow_broker_makes_the_delay_longer():
    queue = Queue(1000)
    for _ in range(100):
        queue.delay.record_copy(0.05)
    assert queue.delay.of("q") == pytest.approx(1000 * (SECONDS_PER_MESSAGE + 0.05), rel=0.01)
