"""Buckets on a Redis Cluster: one slot per path, moved slots, hung masters, failover."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
import redis.asyncio
from servers import RedisCluster, RedisServer, free_port, wait_replicated, wait_until

from bucketflow import StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket, create_redis_bucket_hierarchy

SLOW = 0.001  # tokens per second: no refill during a test


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with RedisCluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def consume_until_granted(consume):
    """Call *consume* until it grants; return the errors before that."""
    errors = []

    def granted():
        began = time.monotonic()
        try:
            return consume()
        except StoreUnavailable as error:
            errors.append(error)
            return False
        finally:
            assert time.monotonic() - began < 2

    wait_until(granted, timeout=30, pause=0.05)
    return errors


@pytest.mark.filterwarnings("ignore:.*read_from_replicas:DeprecationWarning")
@pytest.mark.parametrize("options", [{}, {"decode_responses": True}, {"read_from_replicas": True}], ids=str)
def test_trees_work_in_any_slot(cluster, options):
    with cluster.client(**options) as client:
        for number in range(12):
            root = f"shop{number}{options}".replace("{", "").replace("}", "")
            config = {"name": root, "capacity": 5, "fill_rate": SLOW}
            config["children"] = [{"name": "acme", "capacity": 3, "fill_rate": SLOW}]
            tree = create_redis_bucket_hierarchy(client, config)
            assert [tree["acme"].consume() for _ in range(4)] == [True] * 3 + [False]
            assert tree[root].tokens == pytest.approx(2, abs=0.01)


def test_a_moved_slot_is_followed(cluster):
    with cluster.client() as client:
        bucket = RedisTokenBucket(client, "{moving}", 5, SLOW)
        assert bucket.consume()
        owners = bucket._runner._topology._owners
        slot = client.keyslot("{moving}")
        owners[slot] = next(address for address in set(owners.values()) if address != owners[slot])
        assert bucket.consume()
        assert bucket.tokens == pytest.approx(3, abs=0.01)
        assert owners[slot][1] == cluster.master_of("{moving}").port


async def test_coroutines_use_a_cluster(cluster):
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
    root = AsyncRedisTokenBucket(client, "async shop", 5, SLOW)
    leaf = AsyncRedisTokenBucket(client, "acme", 3, SLOW, parent=root)
    assert [await leaf.consume() for _ in range(4)] == [True] * 3 + [False]
    assert await root.get_tokens() == pytest.approx(2, abs=0.01)
    await leaf.close()
    await client.aclose()


@pytest.mark.timing
def test_a_hung_master_fails_a_call_within_its_timeout(cluster):
    with cluster.client() as client:
        bucket = RedisTokenBucket(client, "hung", 5, SLOW, timeout=0.2)
        bucket.consume()
        master = cluster.master_of("{hung}")
        master.pause()
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=str(master.port)):
            bucket.consume()
        assert time.monotonic() - began < 0.45
        master.resume()
        consume_until_granted(bucket.consume)


@pytest.fixture
def far_apart(cluster):
    """Yield two keys of different masters, and the master of the first; resume it afterwards."""
    near = "{one}"
    far = next(key for key in map("{{{}}}".format, range(100)) if cluster.master_of(key) is not cluster.master_of(near))
    master = cluster.master_of(near)
    yield near, far, master
    master.resume()
    with cluster.client() as client:
        consume_until_granted(RedisTokenBucket(client, near, 500, SLOW).consume)


def test_a_hung_master_blocks_only_threads_that_call_it(cluster, far_apart):
    hanging, running, master = far_apart
    with cluster.client() as client, ThreadPoolExecutor(1) as pool:
        buckets = [RedisTokenBucket(client, key, 500, SLOW, timeout=3) for key in (hanging, running)]
        assert all(bucket.consume() for bucket in buckets)
        master.pause()
        blocked = pool.submit(buckets[0].consume)
        assert all(buckets[1].consume() for _ in range(100))
        assert not blocked.done()
        master.resume()
        assert blocked.result()


async def test_a_hung_master_blocks_only_coroutines_that_call_it(cluster, far_apart):
    hanging, running, master = far_apart
    client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
    buckets = [AsyncRedisTokenBucket(client, key, 500, SLOW, timeout=3) for key in (hanging, running)]
    assert all([await bucket.consume() for bucket in buckets])
    master.pause()
    blocked = asyncio.ensure_future(buckets[0].consume())
    assert all([await buckets[1].consume() for _ in range(100)])
    assert not blocked.done()
    master.resume()
    assert await blocked
    await buckets[0].close()
    await client.aclose()


def test_threads_and_coroutines_recover_from_a_failover(cluster):
    loop = asyncio.new_event_loop()
    with cluster.client() as client:
        bucket = RedisTokenBucket(client, "failover", 50, SLOW, timeout=0.5)
        async_client = redis.asyncio.RedisCluster(host="127.0.0.1", port=cluster.nodes[0].port)
        async_bucket = AsyncRedisTokenBucket(async_client, "failover", 50, SLOW, timeout=0.5)
        assert bucket.consume()
        assert loop.run_until_complete(async_bucket.consume())
        master = cluster.master_of("{failover}")
        wait_replicated(master, cluster.nodes[cluster.nodes.index(master) + RedisCluster.MASTERS])
        master.kill()
        errors = consume_until_granted(bucket.consume)
        consume_until_granted(lambda: loop.run_until_complete(async_bucket.consume()))
        assert errors
        assert 45 <= bucket.tokens <= 46.01  # the replica has the tokens spent before
        loop.run_until_complete(async_bucket.close())
        loop.run_until_complete(async_client.aclose())
        loop.close()


async def test_slots_without_an_owner_are_an_outage_that_ends_when_they_have_one(tmp_path):
    options = ["--cluster-enabled", "yes", "--cluster-port", free_port()]
    with RedisServer.start(tmp_path, args=options) as server, server.client() as admin:
        url = f"redis+cluster://127.0.0.1:{server.port}"
        with pytest.raises(StoreUnavailable, match="no node owns slot"):
            RedisTokenBucket(url=url, key="shop", capacity=5, fill_rate=1).consume()
        with pytest.raises(StoreUnavailable, match="no node owns slot"):
            await AsyncRedisTokenBucket(url=url, key="shop", capacity=5, fill_rate=1).consume()
        bucket = RedisTokenBucket(url=url, key="shop", capacity=5, fill_rate=1)
        admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(bucket.consume)
        admin.execute_command("CLUSTER DELSLOTSRANGE", 0, 16383)
        for _ in range(2):  # the second call asks for the owner
            with pytest.raises(StoreUnavailable):
                bucket.consume()
        admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        wait_until(bucket.consume)
