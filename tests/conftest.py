"""Fixtures every test may ask for: real servers, see ``servers.py``."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings
from servers import RabbitServer, RedisServer

# Where a change lands the same examples run every time; new ones are looked for everywhere else.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """Yield the server that tests share. Nobody kills it."""
    with RedisServer.start(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server):
    """Yield a client of the shared server, emptied."""
    with redis_server.client() as client:
        client.flushall()
        yield client


@pytest.fixture
def fresh_redis(tmp_path):
    """Yield a server of the test's own, to kill, hang and restart."""
    with RedisServer.start(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory):
    """Yield the RabbitMQ that tests share."""
    with RabbitServer.start(tmp_path_factory.mktemp("rabbit")) as server:
        yield server
