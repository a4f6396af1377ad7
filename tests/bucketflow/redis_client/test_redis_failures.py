"""Redis unreachable, hung, flushed or read-only: an error within the timeout, no repeated call, and recovery."""

from __future__ import annotations

import asyncio
import time

import pytest
import redis
import redis.asyncio
from servers import RedisServer

from bucketflow import StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.encoding import pack

SLOW = 0.001  # tokens per second: no refill during a test
TIMEOUT = 0.2  # seconds the server may take to reply
IN_TIME = TIMEOUT + 0.5  # far below what redis-py's ten retries would take


class Threads:
    def __init__(self, server, **options):
        self.client = server.client()
        self.bucket = RedisTokenBucket(self.client, "shop", 100, SLOW, timeout=TIMEOUT, **options)

    def consume(self):
        return self.bucket.consume()

    def tokens(self):
        return self.bucket.tokens

    def close(self):
        self.client.close()


class Coroutines:
    def __init__(self, server, **options):
        self.loop = asyncio.new_event_loop()
        client = redis.asyncio.Redis(host="127.0.0.1", port=server.port)
        self.bucket = AsyncRedisTokenBucket(client, "shop", 100, SLOW, timeout=TIMEOUT, **options)

    def consume(self):
        self.loop.run_until_complete(asyncio.sleep(0.005))  # as in an application, whose loop runs between two calls
        return self.loop.run_until_complete(self.bucket.consume())

    def tokens(self):
        return self.loop.run_until_complete(self.bucket.get_tokens())

    def close(self):
        self.loop.run_until_complete(self.bucket.close())
        self.loop.close()


@pytest.fixture(params=[Threads, Coroutines])
def shop(request, fresh_redis):
    shop = request.param(fresh_redis)
    yield shop
    shop.close()


def error_in_time(call):
    began = time.monotonic()
    with pytest.raises(StoreUnavailable) as error:
        call()
    assert time.monotonic() - began < IN_TIME
    return error.value


def test_a_killed_server_is_named_in_the_error_and_used_again_after_its_restart(shop, fresh_redis):
    assert shop.consume()
    fresh_redis.kill()
    for _ in range(3):
        error = error_in_time(shop.consume)
        assert error.store == f"127.0.0.1:{fresh_redis.port}"
        assert isinstance(error.__cause__, redis.ConnectionError)
    fresh_redis.restart()
    assert shop.consume()
    assert shop.tokens() == pytest.approx(99, abs=0.01)


def test_a_server_that_never_ran_is_named_in_the_error(shop, fresh_redis):
    fresh_redis.kill()
    assert str(fresh_redis.port) in error_in_time(shop.consume).reason


def test_a_restart_between_two_calls_raises_no_error(shop, fresh_redis):
    shop.consume()
    fresh_redis.restart()
    assert shop.consume()


def test_a_hung_server_fails_a_call_in_time_and_spends_at_most_once(shop, fresh_redis):
    assert shop.consume()
    fresh_redis.pause()
    try:
        error = error_in_time(shop.consume)
        assert isinstance(error.__cause__, redis.TimeoutError)
    finally:
        fresh_redis.resume()
    assert 97.99 <= shop.tokens() <= 99.01
    assert shop.consume()
    assert 96.99 <= shop.tokens() <= 98.01


def test_a_hung_server_fails_the_very_first_call_in_time(shop, fresh_redis):
    fresh_redis.pause()
    try:
        error_in_time(shop.consume)
        error_in_time(shop.consume)
    finally:
        fresh_redis.resume()
    assert shop.consume()


def test_an_outage_ends_a_blocking_call_and_lets_the_next_waiter_poll(shop, fresh_redis):
    fresh_redis.kill()
    bucket = shop.bucket
    for _ in range(2):
        if isinstance(shop, Coroutines):
            error_in_time(lambda: shop.loop.run_until_complete(bucket.consume(block=True)))
        else:
            error_in_time(lambda: bucket.consume(block=True))
    fresh_redis.restart()
    assert shop.consume()


def test_flushed_scripts_are_loaded_again_and_run_once(shop, fresh_redis):
    with fresh_redis.client() as client:
        for left in (99, 98, 97):
            client.script_flush()
            assert shop.consume()
            assert shop.tokens() == pytest.approx(left, abs=0.01)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("maxmemory", "1", "command not allowed"),
        ("min-replicas-to-write", "1", "replicas"),
        ("replicaof", "", "read only"),
    ],
)
def test_a_server_that_rejects_writes_is_named_with_its_reason_and_spends_nothing(
    shop, fresh_redis, setting, value, reason
):
    shop.consume()
    with fresh_redis.client() as client:
        if setting == "replicaof":
            client.replicaof("127.0.0.1", fresh_redis.port)
        else:
            client.config_set(setting, value)
        error = error_in_time(shop.consume)
        assert reason in error.reason
        assert isinstance(error.__cause__, redis.RedisError)
        if setting == "replicaof":
            client.replicaof("NO", "ONE")
        else:
            client.config_set(setting, "0")
    assert shop.tokens() == pytest.approx(99, abs=0.01)
    assert shop.consume()


def test_a_foreign_value_under_the_key_is_an_error_and_is_kept(shop, fresh_redis):
    with fresh_redis.client() as client:
        client.set("bucketflow:{shop}", "foreign")
        error_in_time(shop.consume)
        assert client.get("bucketflow:{shop}") == b"foreign"


def test_a_stray_error_on_a_connection_fails_one_call_and_shifts_no_replies(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 5, SLOW)
    assert bucket.consume()
    node = bucket._runner._topology.sole_node
    connection = node.connect()
    connection.send_packed_command([pack(["NOSUCHCOMMAND"])])  # as after an interrupted handshake
    node._retain(connection, [])
    with pytest.raises(StoreUnavailable, match="NOSUCHCOMMAND"):
        bucket.consume()
    assert bucket.tokens == pytest.approx(3, abs=0.01)
    assert not bucket.consume(4)
    assert bucket.consume(3)


def test_a_wrong_password_raises_store_unavailable(tmp_path):
    with RedisServer.start(tmp_path / "locked") as server:
        server.client().config_set("requirepass", "secret")
        bucket = RedisTokenBucket(server.client(password="wrong"), "shop", 5, 1)
        error_in_time(bucket.consume)
        assert RedisTokenBucket(server.client(password="secret"), "shop", 5, 1).consume()


@pytest.mark.filterwarnings("ignore:.*get_connection:DeprecationWarning")
def test_an_exhausted_pool_fails_a_call_in_time(redis_server, redis_client):
    redis_client.flushall()
    pool = redis.BlockingConnectionPool(port=redis_server.port, max_connections=1, timeout=30)
    bucket = RedisTokenBucket(redis.Redis(connection_pool=pool), "shop", 5, 1, timeout=TIMEOUT)
    private = bucket._runner._topology.sole_node.client.connection_pool
    taken = private.get_connection("")  # redis-py 5 requires a name
    error_in_time(bucket.consume)
    private.release(taken)
    assert bucket.consume()
