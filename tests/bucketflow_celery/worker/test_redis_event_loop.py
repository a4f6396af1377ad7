"""Scripts run from kombu's event loop, on a real server that answers, hangs, dies and comes back."""

from __future__ import annotations

import os
import time

import pytest
from kombu.asynchronous import Hub
from redis import Redis

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script
from bucketflow_celery.store.redis_backlog import RedisStoreCall
from bucketflow_celery.worker import redis_event_loop as hub_runner
from bucketflow_celery.worker.redis_event_loop import EventLoopRunner

TIMEOUT = 0.5
ECHO = Script.compose("echo", "return ARGV[1]")


class Loop:
    """Turns a hub until what was asked for is answered."""

    def __init__(self, url):
        self.hub = Hub()
        self.scripts = ScriptRunner(Redis.from_url(url), TIMEOUT)
        self.runner = EventLoopRunner(self.scripts, self.hub, TIMEOUT)
        self.outcomes = []

    def ask(self, word, *, inline=False):
        call = RedisStoreCall(self.scripts, ECHO, [b"key"], [word], lambda reply: reply)
        self.runner.run(call, self.outcomes.append, inline=inline)

    def turn(self):
        next(self.hub.loop)

    def outcome(self):
        deadline = time.monotonic() + 10
        while not self.outcomes:
            assert time.monotonic() < deadline, "no answer, and no failure either"
            self.turn()
        return self.outcomes.pop()

    def events(self):
        """Return what would wake the loop at once."""
        return list(self.hub.poller.poll(0) or ())


@pytest.fixture
def loop(fresh_redis):
    loop = Loop(fresh_redis.url)
    yield loop
    loop.runner.close()
    loop.hub.close()


def test_the_answer_comes_through_the_loop_and_not_before(loop):
    loop.ask("a")
    assert loop.outcomes == []
    assert loop.outcome() == b"a"
    loop.ask("b")
    assert loop.outcome() == b"b"


def test_an_urgent_question_is_answered_before_the_loop_turns(loop, monkeypatch):
    monkeypatch.setattr(hub_runner, "INLINE_WAIT_MS", 5000)
    loop.ask("a")
    loop.outcome()
    loop.ask("b", inline=True)
    assert loop.outcomes == [b"b"]
    assert loop.events() == []


def test_a_server_that_lets_an_urgent_question_wait_is_left_to_the_loop_for_a_while(loop, fresh_redis, monkeypatch):
    monkeypatch.setattr(hub_runner, "INLINE_BACKOFF", 2)
    loop.ask("a")
    loop.outcome()
    fresh_redis.pause()
    loop.ask("b", inline=True)
    assert loop.outcomes == []
    fresh_redis.resume()
    assert loop.outcome() == b"b"
    monkeypatch.setattr(hub_runner, "INLINE_WAIT_MS", 5000)
    for _ in range(2):
        loop.ask("c", inline=True)
        assert loop.outcomes == []
        assert loop.outcome() == b"c"
    loop.ask("d", inline=True)
    assert loop.outcomes == [b"d"]


@pytest.mark.parametrize("inline", [False, True])
def test_a_server_that_is_away_fails_the_question_and_is_found_when_it_is_back(loop, fresh_redis, inline):
    fresh_redis.kill()
    loop.ask("a", inline=inline)
    assert isinstance(loop.outcome(), StoreUnavailable)
    fresh_redis.restart()
    loop.ask("b", inline=inline)
    assert loop.outcome() == b"b"


def test_a_server_without_the_script_is_given_it(loop, fresh_redis):
    loop.ask("a")
    loop.outcome()
    with fresh_redis.client() as client:
        client.script_flush()
    loop.ask("b")
    assert loop.outcome() == b"b"


def test_a_server_that_hangs_fails_the_question_in_time_and_its_late_answer_is_nobodys(loop, fresh_redis):
    loop.ask("a")
    loop.outcome()
    fresh_redis.pause()
    loop.ask("late")
    assert isinstance(loop.outcome(), StoreUnavailable)
    fresh_redis.resume()
    loop.ask("b")
    assert loop.outcome() == b"b"


@pytest.mark.parametrize("when", ["while it is asked", "before it is asked"])
def test_a_server_that_dies_leaves_the_loop_nothing_to_wake_for_though_a_child_keeps_the_socket(
    loop, fresh_redis, when
):
    loop.ask("a")
    loop.outcome()
    inherited = os.dup(loop.runner._connection._sock.fileno())  # as every process that is forked from here on does
    try:
        if when == "while it is asked":
            fresh_redis.pause()
            loop.ask("b")
            fresh_redis.kill()
        else:
            fresh_redis.kill()
            loop.ask("b")
        assert isinstance(loop.outcome(), StoreUnavailable)
        assert loop.events() == []
        assert loop.hub.readers == {}
    finally:
        os.close(inherited)
