"""Both ways of reading a clock give the same time: whole µs of the monotonic clock."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow.clock import SYSTEM_CLOCK, SystemClock, fast_reader
from bucketflow.testing import FakeClock


class TwoDaysLater(SystemClock):
    def now(self):
        return super().now() + 2 * 86_400_000_000


def as_fast_path(reading, scale):
    """Return the time as the fast path of every ``consume`` computes it."""
    return reading * scale + 2.0**52 - 2.0**52


@given(st.floats(0, 1e9))
def test_both_ways_round_a_reading_of_the_system_clock_to_the_same_microsecond(seconds):
    _, scale = fast_reader(SYSTEM_CLOCK)
    assert as_fast_path(seconds, scale) == round(seconds * 1_000_000)


@given(st.integers(0, 2**52))
def test_whole_microseconds_of_another_clock_are_unchanged(now):
    assert as_fast_path(now, fast_reader(FakeClock())[1]) == now


@pytest.mark.parametrize("clock", [SystemClock(), TwoDaysLater(), FakeClock(start=5)])
def test_the_fast_reader_of_a_clock_reads_that_clock(clock):
    read, scale = fast_reader(clock)
    before = clock.now()
    assert before <= as_fast_path(read(), scale) <= clock.now()


def test_the_system_clock_is_the_monotonic_clock_in_whole_microseconds():
    before, now, after = time.monotonic_ns(), SYSTEM_CLOCK.now(), time.monotonic_ns()
    assert isinstance(now, int)
    assert before // 1000 <= now <= after // 1000 + 1
