"""Waiting awake: it ends when the answer is there, and is given up where answers do not come at once."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bucketflow.spin_wait import SPIN, SpinWait


class Server:
    """Answers some time after it was asked; a look takes a tenth of the time for which a wait stays awake."""

    def __init__(self, *answer_times):
        self.now = 0.0
        self.answer_times = list(answer_times)
        self.looks = 0
        self.spin_wait = SpinWait(lambda: self.now)

    def awake(self):
        """Ask; return for how long the wait stayed awake, and whether the answer was there then."""
        asked_at, takes = self.now, self.answer_times.pop(0)

        def is_there():
            return self.now >= asked_at + takes

        def look():
            self.looks += 1
            if is_there():
                return True
            self.now += SPIN / 10
            return False

        self.spin_wait.wait(look)
        awake, was_there = self.now - asked_at, is_there()
        self.now = max(self.now, asked_at + takes)
        return awake, was_there


def test_who_is_answered_at_once_never_sleeps():
    server = Server(*[SPIN / 2] * 20)
    assert [server.awake() for _ in range(20)] == [(pytest.approx(SPIN / 2), True)] * 20


def test_an_answer_that_is_there_already_costs_one_look():
    server = Server(0)
    assert server.awake() == (0, True)
    assert server.looks == 1


def test_a_wait_stays_awake_for_its_time_and_no_longer():
    server = Server(100 * SPIN)
    assert server.awake() == (pytest.approx(SPIN, rel=0.11), False)


def test_where_no_answer_comes_in_time_ever_fewer_waits_stay_awake():
    server = Server(*[2 * SPIN] * 2000)
    awake = [number for number in range(2000) if server.awake()[0] > 0]
    assert awake[:9] == [0, 2, 6, 14, 30, 62, 126, 254, 510]
    assert {later - before for before, later in pairwise(awake[8:])} == {256}


def test_one_answer_in_time_and_all_waits_stay_awake_again():
    late, soon = [2 * SPIN] * 7, [SPIN / 2] * 10
    server = Server(*late, *soon)
    stayed = [server.awake()[0] > 0 for _ in range(17)]
    assert stayed == [True, False, True, False, False, False, True, *[False] * 7, True, True, True]


def test_an_error_while_looking_is_the_callers():
    def look():
        raise ConnectionError("closed")

    with pytest.raises(ConnectionError, match="closed"):
        SpinWait().wait(look)
