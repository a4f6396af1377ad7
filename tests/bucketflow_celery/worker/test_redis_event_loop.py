"""Scripts run from Kombu's event loop, on a real server that answers, hangs, dies and restarts."""

from __future__ import annotations

import os
import time

import pytest
from kombu.asynchronous import Hub
from proxy import Proxy
from redis import Redis
from servers import RedisServer, wait_until

from bucketflow.errors import StoreUnavailable
from bucketflow.redis_client.connection import MAX_IDLE
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script
from bucketflow_celery.store.redis_backlog import RedisStoreCall
from bucketflow_celery.worker import redis_event_loop
from bucketflow_celery.worker.redis_event_loop import EventLoopRunner

TIMEOUT = 0.5
ECHO = Script.of("echo", "return ARGV[1]")
WRITE = Script.of("write", "redis.call('SET', KEYS[1], ARGV[1]) return ARGV[1]")


class Loop:
    """A hub that runs until a call has its outcome."""

    def __init__(self, url):
        self.hub = Hub()
        self.ahead = 0.0  # of the real clock, in seconds
        self.scripts = ScriptRunner(Redis.from_url(url), TIMEOUT)
        self.runner = EventLoopRunner(self.scripts, self.hub, TIMEOUT, lambda: time.monotonic() + self.ahead)
        self.outcomes = []

    def call(self, word, *, inline=False, script=ECHO):
        call = RedisStoreCall(self.scripts, script, [b"key"], [word], lambda reply: reply)
        self.runner.run(call, self.outcomes.append, inline=inline)

    def run_once(self):
        next(self.hub.loop)

    def outcome(self):
        deadline = time.monotonic() + 10
        while not self.outcomes:
            assert time.monotonic() < deadline, "neither a reply nor a failure"
            self.run_once()
        return self.outcomes.pop()

    def events(self):
        """Return the events that would wake the loop at once."""
        return list(self.hub.poller.poll(0) or ())


@pytest.fixture
def loop(fresh_redis):
    loop = Loop(fresh_redis.url)
    yield loop
    loop.runner.close()
    loop.hub.close()


def test_the_reply_is_read_by_the_loop(loop):
    loop.call("a")
    assert loop.outcomes == []
    assert loop.outcome() == b"a"
    loop.call("b")
    assert loop.outcome() == b"b"


def test_an_inline_call_is_answered_before_the_loop_runs(loop, monkeypatch):
    monkeypatch.setattr(redis_event_loop, "INLINE_WAIT_MS", 5000)
    loop.call("a")
    loop.outcome()
    loop.call("b", inline=True)
    assert loop.outcomes == [b"b"]
    assert loop.events() == []


def test_after_a_slow_reply_inline_calls_are_left_to_the_loop_for_a_while(loop, fresh_redis, monkeypatch):
    monkeypatch.setattr(redis_event_loop, "INLINE_BACKOFF", 2)
    loop.call("a")
    loop.outcome()
    fresh_redis.pause()
    loop.call("b", inline=True)
    assert loop.outcomes == []
    fresh_redis.resume()
    assert loop.outcome() == b"b"
    monkeypatch.setattr(redis_event_loop, "INLINE_WAIT_MS", 5000)
    for _ in range(2):
        loop.call("c", inline=True)
        assert loop.outcomes == []
        assert loop.outcome() == b"c"
    loop.call("d", inline=True)
    assert loop.outcomes == [b"d"]


@pytest.mark.parametrize("inline", [False, True])
def test_a_call_fails_while_the_server_is_down_and_succeeds_after_its_restart(loop, fresh_redis, inline):
    fresh_redis.kill()
    loop.call("a", inline=inline)
    assert isinstance(loop.outcome(), StoreUnavailable)
    fresh_redis.restart()
    loop.call("b", inline=inline)
    assert loop.outcome() == b"b"


def test_a_missing_script_is_loaded(loop, fresh_redis):
    loop.call("a")
    loop.outcome()
    with fresh_redis.client() as client:
        client.script_flush()
    loop.call("b")
    assert loop.outcome() == b"b"


def test_a_call_to_a_hanging_server_times_out_and_its_late_reply_is_discarded(loop, fresh_redis):
    loop.call("a")
    loop.outcome()
    fresh_redis.pause()
    loop.call("late")
    assert isinstance(loop.outcome(), StoreUnavailable)
    fresh_redis.resume()
    loop.call("b")
    assert loop.outcome() == b"b"


@pytest.mark.parametrize("when", ["during the call", "before the call"])
def test_after_the_server_died_a_socket_inherited_by_a_child_does_not_wake_the_loop(loop, fresh_redis, when):
    loop.call("a")
    loop.outcome()
    inherited = os.dup(loop.runner._connection._sock.fileno())  # as every process that is forked from now on does
    try:
        if when == "during the call":
            fresh_redis.pause()
            loop.call("b")
            fresh_redis.kill()
        else:
            fresh_redis.kill()
            loop.call("b")
        assert isinstance(loop.outcome(), StoreUnavailable)
        assert loop.events() == []
        assert loop.hub.readers == {}
    finally:
        os.close(inherited)


@pytest.mark.parametrize(("query", "seconds"), [("", MAX_IDLE), ("?health_check_interval=2", 2.0)])
def test_a_connection_that_was_dropped_while_idle_fails_no_call(redis_server, query, seconds):
    with Proxy(redis_server.port) as proxy:
        loop = Loop(f"redis://127.0.0.1:{proxy.port}/0{query}")
        loop.call("a")
        assert loop.outcome() == b"a"
        proxy.drop()
        loop.ahead += seconds

        loop.call("b")

        assert loop.outcome() == b"b"
        assert proxy.accepted == 2
        loop.call("c")
        assert loop.outcome() == b"c"
        assert proxy.accepted == 2
        loop.runner.close()
        loop.hub.close()


def test_after_a_failover_behind_one_address_the_next_call_reaches_the_new_master(tmp_path, fresh_redis):
    with RedisServer.start(tmp_path / "b") as replica, Proxy(fresh_redis.port) as proxy:
        with replica.client() as new, fresh_redis.client() as old:
            new.replicaof("127.0.0.1", fresh_redis.port)
            wait_until(lambda: new.info("replication")["master_link_status"] == "up")
            loop = Loop(f"redis://127.0.0.1:{proxy.port}/0")
            loop.call("a", script=WRITE)
            assert loop.outcome() == b"a"

            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", replica.port)
            proxy.target = replica.port

            for word in ("b", "c"):
                loop.call(word, script=WRITE)
                assert loop.outcome() == word.encode()
            assert new.get("key") == b"c"
        loop.runner.close()
        loop.hub.close()
