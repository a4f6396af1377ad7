"""The rights of a Redis user: the documented lists are those of the scripts, suffice, and a missing one is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis
from access import commands_in, documented, limited_user
from store_operations import run_every_operation

import bucketflow
import bucketflow_celery.store
from bucketflow import Limit, StoreAccessDenied
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.config.levels import Level
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.store.permissions import LEVEL_COMMANDS, PARKING_COMMANDS
from bucketflow_celery.store.redis_store import RedisStore

STORE = Path(bucketflow_celery.store.__file__).parent
LUA = STORE / "lua"
GCRA = Path(bucketflow.__file__).parent / "lua" / "gcra.lua"
PATTERNS = "~{bucketflow}:*", "&{bucketflow}:calls"
CONNECTION = documented("guide.md", "- Connections:", "  - Buckets:")
BUCKETS = documented("guide.md", "- Buckets:", "  - Parking,")
PARKING = documented("guide.md", "- Parking, in addition:", "  - The buckets of")


def store_at(url, database=1):
    return RedisStore(ScriptRunner.from_url(f"{url}/{database}"), "bucketflow")


def level_scripts():
    """Return the files of the scripts that every worker runs: those of the store without its backlogs."""
    called = re.findall(r'level_script\("(\w+)"\)', (STORE / "redis_store.py").read_text())
    return [GCRA, LUA / "level.lua", *(LUA / f"{name}.lua" for name in called)]


# The lists


def test_the_list_for_buckets_is_that_of_the_scripts():
    assert set().union(*map(commands_in, level_scripts())) == set(LEVEL_COMMANDS) == BUCKETS


def test_the_list_for_parking_is_that_of_the_other_scripts():
    files = {path for path in LUA.glob("*.lua") if path.name != "denied.lua"} - {*level_scripts()}
    called = set().union(*map(commands_in, files)) - set(LEVEL_COMMANDS)
    assert called == set(PARKING_COMMANDS) == PARKING - {"SUBSCRIBE"}


def test_a_worker_tries_every_command_of_the_lists():
    table = (LUA / "denied.lua").read_text().partition("local arguments")[2].partition("\n}")[0]
    assert set(re.findall(r"^  \['([A-Z]+)'\] =", table, re.MULTILINE)) == {*LEVEL_COMMANDS, *PARKING_COMMANDS}


# A real server


@pytest.fixture(scope="module")
def server(redis_or_valkey):
    """Yield a server of each kind: they name what they deny in different words."""
    return redis_or_valkey


def test_the_documented_rights_suffice_for_every_operation_on_a_numbered_database(server):
    path = (Level("all", "all", Limit(1, 1)), Level("tenant", "t:a", Limit(1, 1)))
    with limited_user(server, CONNECTION | BUCKETS | PARKING, *PATTERNS) as url, server.client(db=1) as admin:
        admin.flushdb()
        store = store_at(url)
        store.check_access(parks=True)
        assert admin.keys() == []
        first, second = store.admit([AdmissionRequest(path, 1, (0, 0))] * 2, "").run()
        assert (first.admitted, second.admitted) == (True, False)
        store.cancel_reservation(AdmissionRequest(path, 1, second.reservations))
        assert len(store.peek(path)[1]) == 2
        assert store.announce_worker("w", "x", 9.0).run().other_tables == []
        with store.backlogs.listen() as notifications:
            notifications.get(0.1)
            run_every_operation(store)
            assert notifications.get(5.0) == ""
        store.pause("queue:x", paused=False)
        store.set_limits(None)
        store.close()


def test_the_documented_rights_without_those_for_parking_suffice_for_buckets(server):
    path = (Level("all", "all", Limit(1, 1)),)
    with limited_user(server, CONNECTION | BUCKETS, *PATTERNS) as url, server.client(db=1) as admin:
        admin.flushdb()
        store = store_at(url)
        store.check_access(parks=False)
        store.set_limits({"all": "1/s"})
        store.pause("queue:x", paused=True)
        version = store.limits().version
        first, second = store.admit([AdmissionRequest(path, 1, (0,))] * 2, version).run()
        assert (first.admitted, second.admitted) == (True, False)
        store.cancel_reservation(AdmissionRequest(path, 1, second.reservations))
        assert store.announce_worker("w", "x", 9.0).run().other_tables == []
        assert len(store.peek(path)[1]) == 1
        assert store.backlogs.queues() == []
        store.close()


@pytest.mark.parametrize("missing", sorted({"EVALSHA", "EVAL", "SELECT"} | BUCKETS | PARKING))
def test_a_worker_names_the_command_that_is_missing(server, missing):
    with server.client() as admin:
        admin.script_flush()
    with limited_user(server, (CONNECTION | BUCKETS | PARKING) - {missing}, *PATTERNS) as url:
        store = store_at(url)
        with pytest.raises(StoreAccessDenied) as denied:
            store.check_access(parks=True)
        store.close()
    assert denied.value.command == missing
    assert f"denies this user {missing}: " in str(denied.value)


def test_a_worker_names_all_commands_of_the_scripts_that_are_missing(server):
    with limited_user(server, (CONNECTION | BUCKETS | PARKING) - {"ZADD", "LPOP", "TIME"}, *PATTERNS) as url:
        store = store_at(url)
        with pytest.raises(StoreAccessDenied) as denied:
            store.check_access(parks=True)
        store.close()
    assert denied.value.command == "TIME, ZADD, LPOP"


def test_a_worker_that_parks_nothing_needs_no_rights_for_parking(server):
    with limited_user(server, CONNECTION | BUCKETS, *PATTERNS) as url:
        store = store_at(url)
        store.check_access(parks=False)
        with pytest.raises(StoreAccessDenied, match="HDEL, HGET"):
            store.check_access(parks=True)
        store.close()


@pytest.mark.parametrize(
    ("patterns", "command"), [(("~other:*", PATTERNS[1]), None), ((PATTERNS[0], "&other:calls"), "PUBLISH")]
)
def test_a_worker_is_told_about_missing_rights_on_keys_and_on_the_channel(server, patterns, command):
    with limited_user(server, CONNECTION | BUCKETS | PARKING, *patterns) as url:
        store = store_at(url)
        with pytest.raises(StoreAccessDenied) as denied:
            store.check_access(parks=True)
        store.close()
    assert denied.value.command == command
    assert ("access: " if command is None else "{bucketflow}:calls") in str(denied.value)


@pytest.mark.parametrize("option", ["--maxmemory 1", "--min-replicas-to-write 1"])
def test_a_server_that_cannot_write_denies_nothing(fresh_redis, option):
    with fresh_redis.client() as admin:
        admin.config_set(*option.removeprefix("--").split())
    store = RedisStore(ScriptRunner(redis.Redis(port=fresh_redis.port)), "bucketflow")
    store.check_access(parks=True)
    store.close()
