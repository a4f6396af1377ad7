"""
The library without Celery and Redis: it needs bucketflow only.

    python standalone.py
"""

from __future__ import annotations

import asyncio
import time

from bucketflow import TokenBucket, rate_limit
from bucketflow.async_token_bucket import AsyncTokenBucket
from bucketflow.decorators import RateLimitExceeded
from bucketflow.hierarchical import create_bucket_hierarchy


def buckets() -> None:
    """Take tokens, or find out when they are available."""
    bucket = TokenBucket(capacity=3, fill_rate=10)
    print("three at once:", [bucket.consume() for _ in range(4)])
    print(f"the next token comes within {bucket.wait_time():.1f} s")
    print("waited for it:", bucket.consume(block=True, timeout=1))


@rate_limit(tokens_per_second=2, block=False)
def greet(name: str) -> str:
    """Greet, at most twice a second."""
    return f"hello {name}"


def decorators() -> None:
    """Limit how often a function starts."""
    print(greet("Ada"), "-", greet("Grace"))
    try:
        greet("Edsger")
    except RateLimitExceeded as refusal:
        print(f"no greeting for Edsger, retry in {refusal.retry_after:.1f} s")


def hierarchies() -> None:
    """Share the limit of a service among its users: a call takes tokens from every bucket of its path, or from none."""
    tree = create_bucket_hierarchy(
        {
            "name": "service",
            "capacity": 5,
            "fill_rate": 1,
            "children": [
                {"name": "alice", "capacity": 3, "fill_rate": 1},
                {"name": "bob", "capacity": 3, "fill_rate": 1},
            ],
        }
    )
    print("alice:", [tree["alice"].consume() for _ in range(4)])
    print("bob:  ", [tree["bob"].consume() for _ in range(4)])


async def coroutines() -> None:
    """Wait without blocking the event loop."""
    bucket = AsyncTokenBucket(capacity=1, fill_rate=20)
    began = time.monotonic()
    await asyncio.gather(*(bucket.consume(block=True) for _ in range(5)))
    print(f"5 coroutines at 20/s took {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    buckets()
    decorators()
    hierarchies()
    asyncio.run(coroutines())
