"""
Real servers as fixtures (see ``servers.py``), and how the suite is spread over the cores of a machine.

``tools/test`` runs the suite in two parts: all but the timing tests on two pytest-xdist workers, then the timing tests
alone. Each xdist worker has servers of its own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import servers
from hypothesis import settings
from servers import RabbitServer, RedisServer

# On CI the same examples run every time, elsewhere Hypothesis looks for new ones. It sets no deadline for an example,
# because the other half of the suite runs at the same time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

HERE = Path(__file__).parent
#: Files whose tests request ``rabbit_server`` by the name of a broker.
RABBIT_FILES = ("test_brokers.py", "test_exchanges.py")
#: Folders in the order in which xdist distributes their tests: a long test that starts last would leave a core idle.
LONGEST_FIRST = ("fleet", "project", "bucketflow_celery", "bucketflow")


def pytest_addoption(parser):
    parser.addoption(
        "--timing",
        choices=("with", "without", "only"),
        default="with",
        help="run the tests marked `timing` together with the others (default), leave them out, or run only them",
    )
    parser.addoption("--no-servers", action="store_true", help="skip the tests that start a server")


def pytest_configure(config):
    servers.allowed = not config.getoption("no_servers")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    selection = config.getoption("timing")
    if selection != "with":
        parts = {True: [], False: []}
        for item in items:
            parts[item.get_closest_marker("timing") is not None].append(item)
        config.hook.pytest_deselected(items=parts[selection != "only"])
        items[:] = parts[selection == "only"]
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: LONGEST_FIRST.index(item.path.relative_to(HERE).parts[0]))
        for item in items:
            if group := shared_by(item):
                item.add_marker(pytest.mark.xdist_group(group))


def shared_by(item):
    """Return the name of what *item* shares with other tests and is worth starting once, or ``None``."""
    if "rabbit_server" in item.fixturenames or item.path.name in RABBIT_FILES:
        return "rabbit"
    definitions = item._fixtureinfo.name2fixturedefs.values()
    own = any(last.scope == "module" and last.baseid.endswith(".py") for *_, last in definitions)
    return item.path.name if own else None


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
