"""Waiting awake: it ends when the answer is there, and is given up where answers do not come at once."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from bucketflow.redis_client.spin_wait import SPIN_TIMEOUT, SpinWait


class Server:
    """Answers some time after it was asked; a look takes a tenth of the time for which a wait stays awake."""

    def __init__(self, *answer_times):
        self.now = 0.0
        self.answer_times = list(answer_times)
        self.looks = 0
        self.spin_wait = SpinWait(lambda: self.now)

    def awake(self):
        """AdmissionRequest; return for how long the wait stayed awake, and whether the answer was there then."""
        asked_at, takes = self.now, self.answer_times.pop(0)

        def is_there():
            return self.now >= asked_at + takes

        def look():
            self.looks += 1
            if is_there():
                return True
            self.now += SPIN_TIMEOUT / 10
            return False

        self.spin_wait.wait(look)
        awake, was_there = self.now - asked_at, is_there()
        self.now = max(self.now, asked_at + takes)
        return awake, was_there


def test_who_is_answered_at_once_never_sleeps():
    server = Server(*[SPIN_TIMEOUT / 2] * 20)
    assert [server.awake() for _ in range(20)] == [(pytest.approx(SPIN_TIMEOUT / 2), True)] * 20


def test_where_answers_are_there_already_ever_fewer_waits_look():
    server = Server(*[0] * 1000)
    assert [server.awake() for _ in range(1000)] == [(0, True)] * 1000
    assert server.looks == len([0, 2, 6, 14, 30, 62, 126, 254, 510, 766])


def test_a_wait_stays_awake_for_its_time_and_no_longer():
    server = Server(100 * SPIN_TIMEOUT)
    assert server.awake() == (pytest.approx(SPIN_TIMEOUT, rel=0.11), False)


def test_where_no_answer_comes_in_time_ever_fewer_waits_stay_awake():
    server = Server(*[2 * SPIN_TIMEOUT] * 2000)
    awake = [number for number in range(2000) if server.awake()[0] > 0]
    assert awake[:9] == [0, 2, 6, 14, 30, 62, 126, 254, 510]
    assert {later - before for before, later in pairwise(awake[8:])} == {256}


def test_where_answers_come_in_time_again_ever_more_waits_stay_awake():
    late, soon = [2 * SPIN_TIMEOUT] * 7, [SPIN_TIMEOUT / 2] * 15
    server = Server(*late, *soon)
    stayed = [number for number in range(22) if server.awake()[0] > 0]
    assert stayed == [0, 2, 6, 14, 18, 20, 21]


@pytest.mark.parametrize("seed", range(5))
def test_where_more_answers_are_late_than_in_time_most_waits_sleep(seed):
    server = Server(*Random(seed).choices([SPIN_TIMEOUT / 2, 2 * SPIN_TIMEOUT], [1, 2], k=3000))
    assert sum(server.awake()[0] > 0 for _ in range(3000)) < 300


def test_an_error_while_looking_is_the_callers():
    def look():
        raise ConnectionError("closed")

    with pytest.raises(ConnectionError, match="closed"):
        SpinWait().wait(look)
