"""One time, whichever way it is asked for: whole µs that never run backwards."""

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


def quick(reading, scale):
    """Return the time as the quick way of every ``consume`` works it out."""
    return reading * scale + 2.0**52 - 2.0**52


@given(st.floats(0, 1e9))
def test_a_reading_of_the_machines_clock_is_rounded_to_the_same_microsecond_both_ways(seconds):
    _, scale = fast_reader(SYSTEM_CLOCK)
    assert quick(seconds, scale) == round(seconds * 1_000_000)


@given(st.integers(0, 2**52))
def test_whole_microseconds_of_another_clock_stay_what_they_are(now):
    assert quick(now, fast_reader(FakeClock())[1]) == now


@pytest.mark.parametrize("clock", [SystemClock(), TwoDaysLater(), FakeClock(start=5)])
def test_the_raw_clock_is_the_clock(clock):
    read, scale = fast_reader(clock)
    before = clock.now()
    assert before <= quick(read(), scale) <= clock.now()


def test_the_machines_clock_is_the_monotonic_one_in_whole_microseconds():
    before, now, after = time.monotonic_ns(), SYSTEM_CLOCK.now(), time.monotonic_ns()
    assert isinstance(now, int)
    assert before // 1000 <= now <= after // 1000 + 1
