"""The rights that a Redis user needs for buckets: the documented list is that of the scripts, and suffices."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis
import redis.asyncio
from access import commands_in, documented, limited_user
from servers import RedisServer, free_port, wait_until

import bucketflow
from bucketflow import StoreAccessDenied
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket

LUA = Path(bucketflow.__file__).parent / "lua"
DOCUMENTED = documented("library.md", "### Access rights", "##")
CONNECTION = {"EVAL", "EVALSHA", "PING", "SELECT", "CLUSTER SLOTS", "COMMAND"}
KEYS = "~bucketflow:*"
SLOW = 0.01  # tokens per second: no refill during a test


@pytest.fixture(scope="module")
def server(redis_or_valkey):
    """Yield a server of each kind: they name what they deny in different words."""
    return redis_or_valkey


def use_threads(url):
    with redis.Redis.from_url(url) as client:
        root = RedisTokenBucket(client, "shop", 100, SLOW)
        child = RedisTokenBucket(client, "acme", 10, SLOW, parent=root)
        leasing = RedisTokenBucket(client, "search", 100, SLOW, lease=10)
        fast = RedisTokenBucket(client, "{tag}:fast", 1, 20)
        assert root.consume()
        assert root.consume(0.0001)  # rewrites the bucket without moving its expiry
        assert child.consume(10)
        assert not child.consume()
        child.refund(1)
        assert fast.consume()
        fast.refund(1)  # full again, so its key is deleted
        assert all(leasing.consume() for _ in range(15))
        leasing.close()
        assert all(fast.consume(block=True, timeout=5) for _ in range(3))  # those that wait poll
        assert child.tokens == pytest.approx(1, abs=0.01)


async def use_coroutines(url):
    client = redis.asyncio.Redis.from_url(url)
    root = AsyncRedisTokenBucket(client, "shop", 100, SLOW)
    child = AsyncRedisTokenBucket(client, "acme", 10, SLOW, parent=root)
    leasing = AsyncRedisTokenBucket(client, "search", 100, SLOW, lease=10)
    fast = AsyncRedisTokenBucket(client, "{tag}:fast", 1, 20)
    assert await root.consume()
    assert await root.consume(0.0001)
    assert await child.consume(10)
    assert not await child.consume()
    await child.refund(1)
    assert await fast.consume()
    await fast.refund(1)
    for _ in range(15):
        assert await leasing.consume()
    await leasing.close()
    assert all(await asyncio.gather(*(fast.consume(block=True, timeout=5) for _ in range(3))))
    for bucket in (root, child, fast):
        await bucket.close()
    await client.aclose()


def use(half, url):
    if half == "threads":
        use_threads(url)
    else:
        asyncio.run(use_coroutines(url))


def test_the_documented_list_is_that_of_the_scripts():
    assert set().union(*map(commands_in, LUA.glob("*.lua"))) == DOCUMENTED - CONNECTION
    assert CONNECTION < DOCUMENTED


@pytest.mark.parametrize("half", ["threads", "coroutines"])
def test_the_documented_rights_suffice_on_a_numbered_database(server, half):
    with limited_user(server, DOCUMENTED, KEYS) as url, server.client(db=1) as admin:
        admin.flushdb()
        use(half, f"{url}/1")
        assert [key for key in admin.keys("*") if not key.startswith(b"bucketflow:{")] == []


@pytest.mark.parametrize("half", ["threads", "coroutines"])
@pytest.mark.parametrize("missing", sorted(DOCUMENTED - {"PING", "CLUSTER SLOTS", "COMMAND"}))
def test_a_call_names_the_command_that_is_missing(server, half, missing):
    with server.client(db=1) as admin:
        admin.flushdb()
        admin.script_flush()
    with limited_user(server, DOCUMENTED - {missing}, KEYS) as url:
        with pytest.raises(StoreAccessDenied, match=f"denies this user {missing}: ") as denied:
            use(half, f"{url}/1")
        assert denied.value.command == missing


def test_a_call_names_no_command_if_it_is_the_key_that_is_denied(server):
    with (
        limited_user(server, DOCUMENTED, "~other:*") as url,
        redis.Redis.from_url(url) as client,
        pytest.raises(StoreAccessDenied, match=r"denies this user access: .*key") as denied,
    ):
        RedisTokenBucket(client, "shop", 1, 1).consume()
    assert denied.value.command is None


def test_a_cluster_client_needs_two_commands_more(tmp_path):
    options = ["--cluster-enabled", "yes", "--cluster-port", free_port()]
    with RedisServer.start(tmp_path, args=options) as server, server.client() as admin:
        admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: admin.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        rights = DOCUMENTED - {"SELECT"}
        with limited_user(server, rights, KEYS) as url, redis.RedisCluster.from_url(url) as client:
            bucket = RedisTokenBucket(client, "shop", 1, SLOW)
            assert bucket.consume()
            assert not bucket.consume()
