"""The Lua scripts of the store: each has a header, which states what the Python binding sends and receives."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from time import sleep

import pytest

from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.testing import FakeClock
from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.scheduling.admit import AdmissionRequest
from bucketflow_celery.scheduling.model import (
    DispatchRequest,
    Lane,
    ParkedMessage,
    Refund,
    Settlement,
    TaskSpec,
    TenantSpec,
)
from bucketflow_celery.store.interfaces import StaleLimits
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.testing import MemoryStore

#: Files that are no operations: other scripts use their functions.
PRELUDES = {"level", "backlog"}
OPERATIONS = sorted(
    name
    for path in files("bucketflow_celery.store").joinpath("lua").iterdir()
    if path.name.endswith(".lua") and (name := path.name.removesuffix(".lua")) not in PRELUDES
)
#: Commands that write nothing, and functions of the preludes that write.
READS = (
    "GET|MGET|TIME|HGET|HMGET|HGETALL|HEXISTS|EXISTS|SMEMBERS|LINDEX|"
    "ZRANGE|ZRANGEBYLEX|ZRANGEBYSCORE|ZSCORE|ZCARD|ZCOUNT"
)
WRITERS = (
    "announce|write_level|enter|wake|save|reset_if_empty|notify|pop_head|set_tag|set_ready|clear_ready|refund_turn"
)
FIELDS = re.compile(
    r"(?P<name>\w+): (?P<what>.+?)\n"
    r"(?P<keys>KEYS.+?)\n"
    r"ARGV +(?P<argv>.+?)\n"
    r"returns +(?P<returns>.+?)\n"
    r"errors +(?P<errors>[^\n]+)\n"
    r"mirrors +(?P<mirrors>[^\n]+)\n",
    re.DOTALL,
)


def header(name):
    lines = files("bucketflow_celery.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8").splitlines()
    comment = "".join(f"{line.removeprefix('-- ')}\n" for line in lines[: [*map(is_code, lines)].index(True)])
    match = FIELDS.fullmatch(comment)
    assert match, f"{name}.lua has no header of the agreed form"
    return {field: " ".join(text.split()) for field, text in match.groupdict().items()}


def is_code(line):
    return not line.startswith("--")


def words(text):
    """Return how many things *text* lists, between commas outside of brackets."""
    return len([word for word in re.sub(r"\(.*?\)", "", text).split(",") if word.strip(" {}")])


class Recorder(ScriptRunner):
    def __init__(self, client):
        super().__init__(client)
        self.calls, self.scripts = {}, {}

    def run(self, script, keys, args):
        reply = super().run(script, keys, args)
        self.scripts[script.name] = script
        self.calls[script.name] = keys, args, reply
        return reply


NAMES = ("all", "queue", "tenant", "task")


@pytest.fixture(params=[1, 2, 4])
def recorded(request, redis_client):
    """Return the depth of the path, the number of requests, and the runner that recorded calls and replies."""
    depth, tasks = request.param, 3
    path = tuple(Level(name, f"level {name}", Limit(1, 0.1)) for name in NAMES[:depth])
    recorder = Recorder(redis_client)
    store = RedisStore(recorder, "twin")
    decisions = store.admit([AdmissionRequest(path, 1, (0,) * depth)] * tasks, "").run()
    reservations = max(decision.reservations for decision in decisions)
    assert any(reservations)
    store.cancel_reservation(AdmissionRequest(path, 1, tuple(reservation or 1 for reservation in reservations)))
    store.charge([(level, 1.0) for level in path]).run()
    store.peek(path)
    store.set_limits({"all": "1/s"})
    store.pause("queue:q", paused=True)
    store.limits()
    store.mark_purge("a purge")
    store.purges()
    store.announce_worker("a", "other", 9.0).run()
    store.announce_worker("b", "digest", 9.0).run()
    store.check_access(parks=False)
    return depth, tasks, recorder


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_header_that_names_it(name):
    stated = header(name)
    assert stated["name"] == name
    assert stated["errors"] in ("none after the first write", "none: nothing is written")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_writes_nothing_if_its_header_says_so(name):
    source = files("bucketflow_celery.store").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    writes = re.findall(rf"redis\.p?call\((?!'(?:{READS})')|\b(?:{WRITERS})\(", source)
    assert bool(writes) == (header(name)["errors"] == "none after the first write")


def test_admit(recorded):
    depth, tasks, recorder = recorded
    keys, args, reply = recorder.calls["admit"]
    fixed, limits, requests, tenants = parts(
        header("admit")["argv"], "limits (", "requests (", "then for each request with a backlog:"
    )
    (_, limit), (_, each, level) = parts(limits, "of each level:"), parts(requests, "of each request:", "root first:")
    assert len(keys) == 1 + depth
    assert (len(args), words(fixed), words(tenants)) == (3, 1, 1)
    assert len(args[1]) == 8 * depth * words(limit.rstrip(")"))
    assert len(args[2]) == 8 * tasks * (
        words(each.partition(", and for each level")[0]) + depth * words(level.rstrip(")"))
    )
    each = header("admit")["returns"].partition("of each request:")[2].partition("(one string")[0]
    each, _, reservation = each.rpartition(", ")
    assert reservation.startswith("reservation in µs at each level")
    assert len(reply) == 8 * tasks * (words(each) + depth)


def test_cancel_reservation(recorded):
    depth, _, recorder = recorded
    keys, args, reply = recorder.calls["cancel_reservation"]
    fixed, _, level = header("cancel_reservation")["argv"].partition("then for each level:")
    assert len(keys) == depth
    assert len(args) == words(fixed) + depth * words(level)
    assert 0 <= reply <= depth


def test_charge(recorded):
    depth, _, recorder = recorded
    keys, args, reply = recorder.calls["charge"]
    assert len(keys) == depth
    assert len(args) == depth * words(header("charge")["argv"].partition("for each level:")[2])
    assert header("charge")["returns"] == str(reply)


def test_peek(recorded):
    depth, _, recorder = recorded
    keys, args, reply = recorder.calls["peek"]
    stated = header("peek")
    assert len(keys) == depth
    assert (stated["argv"], args) == ("none", [])
    assert stated["returns"].startswith(
        "{now µs, then full_at, reserved_until, capacity, fill_rate, debt_at and debt_rate of each level"
    )
    assert len(reply) == 1 + 6 * depth


def test_limits_and_set_limits(recorded):
    _, _, recorder = recorded
    calls = recorder.calls
    keys, args, reply = calls["set_limits"]
    assert words(header("set_limits")["keys"].removeprefix("KEYS").split(";")[0]) == len(keys) == 3
    assert words(header("set_limits")["argv"]) == len(args) == 3
    assert header("set_limits")["returns"].startswith("{} | {version in force}")
    assert reply == []
    keys, args, reply = calls["limits"]
    assert words(header("limits")["keys"].removeprefix("KEYS").split(";")[0]) == len(keys)
    assert (header("limits")["argv"], args) == ("none", [])
    version, table, *paused = reply
    assert version
    assert json.loads(table) == {"all": "1/s"}
    assert paused == [b"queue:q"]


def test_mark_purge_and_purge_marks(recorded):
    _, _, recorder = recorded
    keys, args, reply = recorder.calls["mark_purge"]
    stated = header("mark_purge")
    assert words(re.sub(r"\(.*?\)", "", stated["keys"]).removeprefix("KEYS").split(";")[0]) == len(keys) == 4
    assert words(stated["argv"]) == len(args)
    assert reply == 1
    keys, args, reply = recorder.calls["purge_marks"]
    assert (header("purge_marks")["argv"], args, len(keys)) == ("none", [], 1)
    now, name, instant = reply
    assert name == b"a purge"
    assert 0 <= now - int(instant) < 10_000_000


def test_announce_worker(recorded):
    _, _, recorder = recorded
    keys, args, reply = recorder.calls["announce_worker"]
    assert len(keys) == 1
    assert words(header("announce_worker")["argv"]) == len(args)
    assert reply == [2, b"other"]


def test_workers_are_counted_while_they_announce_themselves(redis_client):
    clock = FakeClock(1000.0)
    for store, wait in ((MemoryStore(clock), clock.advance), (RedisStore(ScriptRunner(redis_client), "twin"), sleep)):
        announced = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y"), ("a", "x")]
        replies = [store.announce_worker(worker, digest, 0.2).run() for worker, digest in announced]
        assert replies == [(1, []), (2, []), (3, ["x"]), (4, ["x"]), (4, ["y"])]
        wait(0.25)
        assert store.announce_worker("b", "x", 0.2).run() == (1, [])
    wait(0.25)
    assert not redis_client.keys()


def test_pause(recorded):
    _, _, recorder = recorded
    keys, args, reply = recorder.calls["pause"]
    assert words(header("pause")["keys"].removeprefix("KEYS").split(";")[0]) == len(keys)
    assert words(header("pause")["argv"]) == len(args)
    assert (header("pause")["returns"], reply) == ("1 if that is new | 0", 1)


# The backlog

COMMON = (Level("all", "all", Limit(9, 1)), Level("queue", "q:q", Limit(9, 1)))
OWN = Level("tenant", "q:q/t:a", Limit(9, 1)), Level("task", "q:q/t:a/f:f", Limit(9, 1))
LANES = [Lane("a", "f", 0), Lane("a", "f", 3), Lane("b", "g", 0)]
CANDIDATES = (
    TenantSpec("a", (TaskSpec("f", (0, 3), OWN[1]),), 2.0, OWN[0]),
    TenantSpec("b", (TaskSpec("g", (0,)), TaskSpec("h", ()))),
)
TASKS, OTHER_TASKS = ("f", "g"), ("x",)


@pytest.fixture
def backlog(redis_client):
    """Return the runner that recorded one call of each operation on a backlog."""
    recorder = Recorder(redis_client)
    store = RedisStore(recorder, "twin")
    backlogs = store.backlogs
    backlogs.renew("w", 10).run()
    messages = [ParkedMessage(bytes([number]) * 14, lane, b"message") for number, lane in enumerate(LANES * 2)]
    assert backlogs.park("q", messages, 5, busy=False).run() == [1, 1, 1, 2, 2, -1]
    request = DispatchRequest("w", 3, COMMON, CANDIDATES, TASKS, OTHER_TASKS)
    dispatch_reply = backlogs.dispatch("q", request, store.limits().version).run()
    uids = [dispatched.owned.item.uid for dispatched in dispatch_reply.dispatched]
    assert len(uids) == 3
    assert len(backlogs.leased_tasks("w").run()) == 3
    refund = Refund((*COMMON, *OWN), 1.0, "a", 0.5)
    settlement = Settlement("w", (uids[0],), tuple(uids[:2]), ((uids[1], LANES[2], True),), (refund,))
    assert backlogs.settle("q", settlement).run() == 1
    assert backlogs.queues() == ["q"]
    assert len(backlogs.view("q").lanes) == 2
    assert backlogs.purge("q", LANES[1]) == 2
    assert backlogs.announce("w", ["q"]).run() == []
    assert backlogs.move("q", "r", LANES[2], lambda message: message) == 1
    return recorder


def parts(text, *marks):
    """Split *text* at *marks*, in order."""
    found = []
    for mark in marks:
        before, _, text = text.partition(mark)
        found.append(before.strip(" ,;"))
    return [*found, text]


def test_all_operations_on_a_backlog_have_the_same_keys_first(backlog):
    source = files("bucketflow_celery.store").joinpath("lua", "backlog.lua").read_text(encoding="utf-8")
    described = re.findall(r"^--   (\w+) ", source, re.MULTILINE)
    for name in ("park", "dispatch", "settle", "purge", "backlog_view"):
        keys, _, _ = backlog.calls[name]
        shared = [key.decode().removeprefix("{twin}:park:").removeprefix("q:") for key in keys[: len(described)]]
        assert shared[1:9] == described[1:9]
        assert shared[0] == "{twin}:limits:version"
        assert shared[9:] == ["worker:w" if name in ("dispatch", "settle") else "worker:", "workers", "queues", "types"]
        assert described[9:] == ["owned", "workers", "queues", "types"]
        assert len(set(keys)) == len(keys)
        assert header(name)["keys"].startswith("KEYS see backlog.lua")


def test_park(backlog):
    keys, args, reply = backlog.calls["park"]
    fixed, each = parts(header("park")["argv"], "then for each task:")
    assert len(keys) == 13 + len(LANES)
    assert len(args) == words(fixed) + 2 * len(LANES) * words(each)
    assert len(reply) == 2 * len(LANES)


def test_dispatch(backlog):
    keys, args, reply = backlog.calls["dispatch"]
    stated = header("dispatch")
    text, level = parts(stated["argv"], "A level is:")
    fixed, own, others, common, tenant, kind, lane = parts(
        text,
        "; how many parked",
        "; how many it",
        "; then how",
        "then for each tenant:",
        "and for each:",
        "and for each:",
    )
    expected = words(fixed) + 1 + len(TASKS) + 1 + len(OTHER_TASKS) + 1 + len(COMMON) * words(level)
    assert own == "task types the worker can run, and each"
    assert others == "cannot run, and each"
    assert common == "many levels all tasks pass, and each"
    for candidate in CANDIDATES:
        expected += words(tenant) + (candidate.level is not None) * words(level)
        for one in candidate.types:
            expected += words(kind) + (one.level is not None) * words(level) + len(one.ranks) * words(lane)
    assert len(args) == expected
    assert len(keys) == 13 + len(COMMON) + len(OWN) + len(LANES)
    version, wait, dispatched, next_tenants, types, unclaimed = reply
    assert version == b""
    assert wait == -1
    each = stated["returns"].partition("{for each task:")[2].partition("}")[0]
    assert [len(one) for one in dispatched] == [words(each)] * 3
    assert len(next_tenants) % 2 == 0
    assert (types, unclaimed) == ([b"f", b"g"], [])


def test_settle(backlog):
    keys, args, reply = backlog.calls["settle"]
    fixed, ended, confirmed, returned, refunds = parts(
        header("settle")["argv"],
        "; how many have",
        "; how many the",
        "; how many return",
        "; then for each task that is refunded",
    )
    each = parts(returned, "and for each:")[1]
    refund, level = parts(refunds.partition(":")[2], "and for each:")
    assert ended == "ended, and their uids"
    assert confirmed == "broker has acknowledged, and their uids"
    path = len(COMMON) + len(OWN)
    assert len(args) == words(fixed) + (1 + 1) + (1 + 2) + (1 + words(each)) + words(refund) + path * words(level)
    assert len(keys) == 13 + 1 + path
    assert words(header("settle")["returns"].partition(";")[0]) == len(reply) == 2


def test_renew_lease(backlog):
    keys, args, reply = backlog.calls["renew_lease"]
    assert len(keys) == 1
    assert len(args) == words(header("renew_lease")["argv"]) == 2
    assert reply == [0]


def test_leased_tasks_and_parked_queues_and_lane_heads(backlog):
    keys, args, reply = backlog.calls["leased_tasks"]
    assert (len(keys), args, header("leased_tasks")["argv"]) == (1, [], "none")
    assert [len(one) for one in reply] == [words(header("leased_tasks")["returns"].partition(":")[2])] * 3
    keys, args, reply = backlog.calls["parked_queues"]
    assert (len(keys), args, header("parked_queues")["argv"], reply) == (1, [], "none", [b"q"])
    keys, args, reply = backlog.calls["lane_heads"]
    assert (len(keys), args, header("lane_heads")["argv"]) == (2, [], "none")
    assert len(reply) == 2


def test_purge_and_backlog_view(backlog):
    keys, args, reply = backlog.calls["purge"]
    assert len(keys) == 13 + 1
    assert len(args) == words(header("purge")["argv"])
    assert reply == 2
    keys, args, reply = backlog.calls["backlog_view"]
    assert (len(keys), args, header("backlog_view")["argv"]) == (14, ["q"], "queue")
    tenant, lane = parts(header("backlog_view")["returns"].partition("{for each tenant:")[2], "{for each lane:")
    assert [len(one) for one in reply[1]] == [words(tenant) + 1] * 2
    assert all(len(one) == words(lane.partition("}")[0]) for _, _, lanes in reply[1] for one in lanes)
    assert reply[2:] == [[], 0]


def test_move_and_its_page(backlog):
    keys, args, reply = backlog.calls["move"]
    fixed, each = parts(header("move")["argv"], "; then for each task:")
    assert len(keys) == 13 + 13 + 2
    assert len(args) == words(fixed) + words(each.partition(" as it is kept")[0])
    assert reply == 1
    keys, args, reply = backlog.calls["lane_page"]
    assert (len(keys), len(args), reply) == (13 + 1, words(header("lane_page")["argv"]), [])


def test_announce_queues(backlog):
    keys, args, reply = backlog.calls["announce_queues"]
    assert [key.decode().removeprefix("{twin}:park:") for key in keys] == ["served", "workers", "queues", "stranded"]
    assert (args, reply) == (["w", "q"], [])


@pytest.mark.parametrize("name", [name for name in OPERATIONS if header(name)["errors"] == "none: nothing is written"])
def test_the_server_confirms_that_a_reading_operation_writes_nothing(redis_client, backlog, recorded, name):
    calls, scripts = recorded[2].calls | backlog.calls, recorded[2].scripts | backlog.scripts
    keys, args, _ = calls[name]
    redis_client.execute_command("EVAL_RO", scripts[name].text, len(keys), *keys, *args)


def test_the_server_knows_a_script_by_the_sha_that_was_computed(redis_client, backlog, recorded):
    scripts = recorded[2].scripts | backlog.scripts
    assert sorted(scripts) == OPERATIONS
    for script in scripts.values():
        assert redis_client.script_load(script.text) == script.sha


def test_limits_that_are_removed_leave_no_key(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    nothing = store.limits()
    assert nothing == ("", None, frozenset())
    store.set_limits({"all": None})
    assert store.limits().table == {"all": None}
    store.set_limits(None)
    assert store.limits() == nothing
    assert not redis_client.keys()


def test_limits_are_set_only_while_the_expected_version_is_in_force(redis_client):
    twins = MemoryStore(), RedisStore(ScriptRunner(redis_client), "twin")
    for store in twins:
        assert store.set_limits({"all": "1/s"}, "") is None
        first = store.limits()
        assert store.set_limits({"all": "2/s"}, first.version) is None
        second = store.limits()
        assert second.table == {"all": "2/s"}
        for stale in ("", first.version, "another"):
            assert store.set_limits({"all": "3/s"}, stale) == StaleLimits(second.version)
            assert store.set_limits(None, stale) == StaleLimits(second.version)
        assert store.limits() == second
        store.pause("queue:q", paused=True)
        assert store.set_limits(None, second.version) == StaleLimits(store.limits().version)
        assert store.set_limits({"all": "4/s"}) is None
        store.pause("queue:q", paused=False)
        assert store.set_limits(None, store.limits().version) is None
        assert store.limits() == ("", None, frozenset())


def test_every_key_has_one_hash_tag(recorded, backlog):
    for keys, _, _ in (recorded[2].calls | backlog.calls).values():
        assert all(key.startswith(b"{twin}:") for key in keys)
