"""Fixtures that run a test against every bucket class, and one that makes threads switch as often as possible."""

from __future__ import annotations

import sys
from functools import partial

import pytest
from redis_shells import (
    AsyncMemoryShell,
    AsyncRedisShell,
    LeasedMemoryShell,
    LeasedRedisShell,
    MemoryShell,
    RedisShell,
)
from shells import AsyncShell, GcraShell, HierarchicalShell, ThreadShell

ADAPTERS = {
    "gcra": GcraShell,
    "threads": ThreadShell,
    "asyncio": AsyncShell,
    "hierarchical": HierarchicalShell,
    "redis": RedisShell,
    "redis-asyncio": AsyncRedisShell,
    "redis-lease": LeasedRedisShell,
    "memory": MemoryShell,
    "memory-asyncio": AsyncMemoryShell,
    "memory-lease": LeasedMemoryShell,
}


#: A lease and its settlement round twice.
EXACT = [name for name in ADAPTERS if not name.endswith("-lease")]


@pytest.fixture(params=ADAPTERS)
def make(request):
    """Return ``make(capacity, fill_rate, initial_tokens=None)`` of each adapter in turn, see shells.py."""
    return maker(request)


@pytest.fixture(params=EXACT)
def make_exact(request):
    """Return the same for the adapters whose results equal those of gcra bit for bit."""
    return maker(request)


def maker(request):
    adapter = ADAPTERS[request.param]
    needs_server = issubclass(adapter, RedisShell) and not issubclass(adapter, MemoryShell)
    return partial(adapter, request.getfixturevalue("redis_client")) if needs_server else adapter


@pytest.fixture
def often_switched():
    """Make the interpreter switch threads as often as possible."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
