"""Adaptive spinning: a wait polls while replies arrive in time, and blocks at once where they do not."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from bucketflow.redis_client.spin_wait import SPIN_TIMEOUT, SpinWait


class Server:
    """Replies after given times, in seconds. One poll takes a tenth of SPIN_TIMEOUT."""

    def __init__(self, *reply_times):
        self.now = 0.0
        self.reply_times = list(reply_times)
        self.polls = 0
        self.spin_wait = SpinWait(lambda: self.now)

    def wait(self):
        """Wait for the next reply; return how long the wait polled, and whether the reply was there then."""
        sent_at, takes = self.now, self.reply_times.pop(0)

        def is_there():
            return self.now >= sent_at + takes

        def poll():
            self.polls += 1
            if is_there():
                return True
            self.now += SPIN_TIMEOUT / 10
            return False

        self.spin_wait.wait(poll)
        polled, was_there = self.now - sent_at, is_there()
        self.now = max(self.now, sent_at + takes)
        return polled, was_there


def test_waits_poll_until_the_reply_where_replies_arrive_in_time():
    server = Server(*[SPIN_TIMEOUT / 2] * 20)
    assert [server.wait() for _ in range(20)] == [(pytest.approx(SPIN_TIMEOUT / 2), True)] * 20


def test_ever_fewer_waits_poll_where_the_reply_is_there_at_the_first_poll():
    server = Server(*[0] * 1000)
    assert [server.wait() for _ in range(1000)] == [(0, True)] * 1000
    assert server.polls == len([0, 2, 6, 14, 30, 62, 126, 254, 510, 766])


def test_a_wait_polls_for_the_spin_timeout_at_most():
    server = Server(100 * SPIN_TIMEOUT)
    assert server.wait() == (pytest.approx(SPIN_TIMEOUT, rel=0.11), False)


def test_ever_fewer_waits_poll_where_replies_arrive_too_late():
    server = Server(*[2 * SPIN_TIMEOUT] * 2000)
    polled = [number for number in range(2000) if server.wait()[0] > 0]
    assert polled[:9] == [0, 2, 6, 14, 30, 62, 126, 254, 510]
    assert {later - before for before, later in pairwise(polled[8:])} == {256}


def test_ever_more_waits_poll_once_replies_arrive_in_time_again():
    late, in_time = [2 * SPIN_TIMEOUT] * 7, [SPIN_TIMEOUT / 2] * 15
    server = Server(*late, *in_time)
    polled = [number for number in range(22) if server.wait()[0] > 0]
    assert polled == [0, 2, 6, 14, 18, 20, 21]


@pytest.mark.parametrize("seed", range(5))
def test_most_waits_block_at_once_where_more_replies_are_late_than_in_time(seed):
    server = Server(*Random(seed).choices([SPIN_TIMEOUT / 2, 2 * SPIN_TIMEOUT], [1, 2], k=3000))
    assert sum(server.wait()[0] > 0 for _ in range(3000)) < 300


def test_an_error_while_polling_is_raised_to_the_caller():
    def poll():
        raise ConnectionError("closed")

    with pytest.raises(ConnectionError, match="closed"):
        SpinWait().wait(poll)
