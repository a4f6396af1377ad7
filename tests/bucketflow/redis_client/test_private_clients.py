"""Accepted clients, keys in Redis, and the connections that buckets open."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from servers import RedisServer, wait_until

from bucketflow import ConfigError
from bucketflow.distributed import RedisTokenBucket
from bucketflow.distributed.base import stored_key

SLOW = 0.001  # tokens per second: no refill during a test


@pytest.mark.parametrize(
    ("key", "root_tag", "stored"),
    [
        ("shop", None, b"bucketflow:{shop}"),
        ("acme", "shop", b"bucketflow:{shop}:acme"),
        ("{shop}:all", None, b"bucketflow:{shop}:all"),
        ("{shop}:acme", "shop", b"bucketflow:{shop}:acme"),
        ("größe", None, "bucketflow:{größe}".encode()),
    ],
)
def test_a_key_is_stored_under_the_tag_of_its_root(key, root_tag, stored):
    assert stored_key(key, root_tag)[1] == stored


@pytest.mark.parametrize("key", ["", None, 7, b"bytes", "a{b", "a}b", "}{", "{}", "{}x", "{a}{b}", "{{a}}", "a}b{c"])
def test_a_key_with_braces_that_form_no_tag_is_rejected(key):
    with pytest.raises(ConfigError, match=r"^key is "):
        stored_key(key)


def test_a_child_with_another_hash_tag_is_rejected(redis_client):
    root = RedisTokenBucket(redis_client, "shop", 5, 1)
    with pytest.raises(ConfigError, match=r"key is '\{other\}:acme'.*\{shop\}"):
        RedisTokenBucket(redis_client, "{other}:acme", 5, 1, parent=root)


names = st.text(st.characters(exclude_characters="{}", exclude_categories=["Cs"]), min_size=1, max_size=8)


@given(st.one_of(names, st.builds("{}{{{}}}{}".format, names, names, names)), st.lists(names, max_size=4))
def test_all_keys_of_a_tree_are_in_one_slot(root, children):
    tag, stored = stored_key(root)
    assert {key_slot(stored)} == {key_slot(stored_key(key, tag)[1]) for key in [*children, f"{{{tag}}}x"]}


@pytest.mark.usefixtures("redis_client")
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"protocol": 3}, {"protocol": 2}], ids=str)
def test_clients_with_any_protocol_options_are_accepted(redis_server, options):
    with redis_server.client(**options) as client:
        bucket = RedisTokenBucket(client, "shop", 5, SLOW)
        assert bucket.try_consume(2).tokens == (pytest.approx(3, abs=0.01),)
        assert not bucket.consume(4)
        bucket.close()


@pytest.mark.usefixtures("redis_client")
def test_a_url_a_unix_socket_and_a_blocking_pool_are_accepted(tmp_path, redis_server):
    path = f"/tmp/bucketflow-{os.getpid()}.sock"
    with RedisServer.start(tmp_path / "unix", args=["--unixsocket", path]):
        assert RedisTokenBucket(redis.Redis(unix_socket_path=path), "shop", 5, SLOW).consume(5)
    assert RedisTokenBucket(redis.Redis.from_url(redis_server.url), "shop", 5, SLOW).consume(1)
    pool = redis.BlockingConnectionPool.from_url(redis_server.url, max_connections=1)
    bucket = RedisTokenBucket(redis.Redis(connection_pool=pool), "shop", 5, SLOW)
    threads = [threading.Thread(target=bucket.consume) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert bucket.tokens == pytest.approx(0, abs=0.01)


def test_buckets_of_one_client_share_connections(redis_client):
    before = len(redis_client.client_list())
    for number in range(20):
        RedisTokenBucket(redis_client, f"shop{number}", 5, 1).consume()
    assert len(redis_client.client_list()) <= before + 1


def test_connections_are_closed_with_the_last_bucket_of_a_client(redis_server, redis_client):
    gc.collect()
    before = len(redis_client.client_list())
    for number in range(5):
        RedisTokenBucket(redis_server.client(), f"shop{number}", 5, 1).consume()
    gc.collect()
    wait_until(lambda: len(redis_client.client_list()) <= before)


def test_a_forked_child_opens_its_own_connections(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 1000, SLOW)
    bucket.consume()
    child = os.fork()
    if child == 0:
        os._exit(0 if all(bucket.consume() for _ in range(100)) else 1)
    assert all(bucket.consume() for _ in range(100))
    assert os.waitpid(child, 0)[1] == 0
    assert bucket.tokens == pytest.approx(799, abs=0.01)


def test_a_forked_child_does_not_wait_behind_its_parents_threads(redis_client):
    bucket = RedisTokenBucket(redis_client, "forked", 1, SLOW, initial_tokens=0)  # the waiter outlives this test
    bucket.consume(0)
    waiter = threading.Thread(target=bucket.consume, kwargs={"block": True, "timeout": 2000}, daemon=True)
    waiter.start()
    wait_until(lambda: bucket._polling_queue.waiters)
    child = os.fork()
    if child == 0:
        bucket.refund()
        os._exit(0 if bucket.consume() else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_pool_of_one_connection_is_enough_for_a_call_and_a_subscription(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    pool = redis.ConnectionPool(port=redis_server.port, max_connections=1)
    bucket = RedisTokenBucket(redis.Redis(connection_pool=pool), "shop", 5, SLOW)
    assert bucket.consume()
    with bucket._runner.subscribe("channel") as subscription:
        assert subscription.get(0.01) is None
    assert bucket.consume()


def test_close_does_not_fail_calls_in_flight_in_other_threads(redis_client):
    bucket = RedisTokenBucket(redis_client, "shop", 10_000, SLOW)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(lambda: [bucket.consume() for _ in range(300)]) for _ in range(2)]
        while not all(future.done() for future in futures):
            bucket.close()
        assert all(all(future.result()) for future in futures)
