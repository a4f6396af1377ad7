"""Every bucket is usable in a forked child at once, whatever the threads of the parent were doing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FORKS = 200

#: Threads use a bucket without a pause, with and without waiting, while children are forked that use it, too.
PROGRAM = """
import asyncio, os, signal, sys, threading
from bucketflow import AsyncTokenBucket, HierarchicalTokenBucket, TokenBucket
from bucketflow.testing import FakeClock
if len(sys.argv) > 2:
    import redis
    from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
    client = redis.Redis(port=int(sys.argv[2]))

bucket = {bucket}
is_async = {is_async}

def consume(**options):
    result = bucket.consume(1, **options)
    return asyncio.run(within(result)) if is_async else result

async def within(result):
    return await result

async def use_in_loop(**options):
    while True:
        await bucket.consume(1, **options)
        await asyncio.sleep(0)

def use(**options):
    if is_async:
        asyncio.run(use_in_loop(**options))
    while True:
        bucket.consume(1, **options)

for block in (False, True) * 2:
    threading.Thread(target=use, kwargs={{"block": block}}, daemon=True).start()
hanging = 0
for _ in range({forks}):
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        consume()
        os._exit(0 if consume(block=True) else 1)
    hanging += os.waitpid(child, 0)[1] != 0
print(hanging, "of {forks} children hang", flush=True)
os._exit(0)
"""


def children_that_hang(bucket, *argv, is_async=False):
    program = PROGRAM.format(bucket=bucket, is_async=is_async, forks=FORKS)
    run = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, "load", *argv],
        capture_output=True,
        text=True,
        timeout=FORKS * 6,
        check=True,
        env=dict(os.environ),
    )
    return run.stdout.strip()


@pytest.mark.parametrize(
    ("bucket", "is_async"),
    [
        ("TokenBucket(10, 2000)", False),
        ("TokenBucket(1e9, 1e9)", False),
        ("AsyncTokenBucket(10, 2000)", True),
        ("HierarchicalTokenBucket(10, 2000, HierarchicalTokenBucket(20, 2000))", False),
        ("HierarchicalTokenBucket(1e9, 1e9, HierarchicalTokenBucket(1e9, 1e9))", False),
        ("TokenBucket(10, 2000, clock=FakeClock())", False),
    ],
)
def test_a_bucket_in_memory_is_usable_in_a_forked_child(bucket, is_async):
    assert children_that_hang(bucket, is_async=is_async) == f"0 of {FORKS} children hang"


# Keys of their own: a call of a process that ends may arrive after the next test has emptied the server.
@pytest.mark.parametrize(
    "bucket",
    [
        "RedisTokenBucket(client, 'forked', 1000, 100_000)",
        "RedisTokenBucket(client, 'forked', 1000, 100_000, lease=50)",
        "RedisTokenBucket(client, 'tenant', 1000, 100_000, parent=RedisTokenBucket(client, 'forked', 1000, 100_000))",
    ],
    ids=["one level", "leased", "two levels"],
)
def test_a_bucket_in_redis_is_usable_in_a_forked_child(redis_server, redis_client, bucket):
    assert redis_client.dbsize() == 0
    assert children_that_hang(bucket, str(redis_server.port)) == f"0 of {FORKS} children hang"
