"""The fixtures through which every shell hears the same story, and one that lets threads get in each other's way."""

from __future__ import annotations

import sys
from functools import partial

import pytest
from redis_shells import AsyncRedisShell, LeasedRedisShell, RedisShell
from shells import AsyncShell, CoreShell, HierarchicalShell, ThreadShell

SHELLS = {
    "core": CoreShell,
    "threads": ThreadShell,
    "asyncio": AsyncShell,
    "hierarchical": HierarchicalShell,
    "redis": RedisShell,
    "redis-asyncio": AsyncRedisShell,
    "redis-lease": LeasedRedisShell,
}


#: What is leased and settled again is rounded twice.
EXACT = [name for name in SHELLS if name != "redis-lease"]


@pytest.fixture(params=SHELLS)
def make(request):
    """Return ``make(capacity, fill_rate, initial_tokens=None)`` of one shell after the other, see shells.py."""
    return maker(request)


@pytest.fixture(params=EXACT)
def make_exact(request):
    """Return the same of those shells that answer with the very bits of the core."""
    return maker(request)


def maker(request):
    shell = SHELLS[request.param]
    return partial(shell, request.getfixturevalue("redis_client")) if issubclass(shell, RedisShell) else shell


@pytest.fixture
def often_switched():
    """Make the interpreter change threads at every chance it has."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
