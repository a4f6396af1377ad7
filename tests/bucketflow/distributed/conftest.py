"""Fixtures of the Redis buckets."""

from __future__ import annotations

import pytest
import redis.asyncio


@pytest.fixture
async def async_client(redis_server, redis_client):
    """Yield an asynchronous client of the shared server, emptied."""
    assert redis_client.dbsize() == 0
    async with redis.asyncio.Redis(port=redis_server.port) as client:
        yield client
