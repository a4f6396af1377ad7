"""The throttle's Lua operations: each has a header, and does what it says with what the binding sends."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from bucketflow.redis_calls import ScriptRunner
from bucketflow.scripts import load_script
from bucketflow_celery.admission import Ask
from bucketflow_celery.limits import Level, Limit
from bucketflow_celery.store import RedisStore

OPERATIONS = sorted(
    path.name.removesuffix(".lua")
    for path in files("bucketflow_celery").joinpath("lua").iterdir()
    if path.name.endswith(".lua") and path.name != "core.lua"
)
FIELDS = re.compile(
    r"(?P<name>\w+): (?P<what>.+?)\n"
    r"(?P<keys>KEYS.+?)\n"
    r"ARGV +(?P<argv>.+?)\n"
    r"returns +(?P<returns>.+?)\n"
    r"errors +(?P<errors>[^\n]+)\n",
    re.DOTALL,
)


def header(name):
    lines = files("bucketflow_celery").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8").splitlines()
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
        self.calls = {}

    def run(self, script, keys, args):
        reply = super().run(script, keys, args)
        self.calls[script.name] = keys, args, reply
        return reply


NAMES = ("all", "queue", "tenant", "task")


@pytest.fixture(params=[1, 2, 4])
def recorded(request, redis_client):
    """Return the depth of the path, how many tasks asked, and what each operation was sent and answered."""
    depth, tasks = request.param, 3
    path = tuple(Level(name, f"level {name}", Limit(1, 0.1)) for name in NAMES[:depth])
    recorder = Recorder(redis_client)
    store = RedisStore(recorder, "twin")
    _, answers = store.admit([Ask(path, 1, (0,) * depth)] * tasks, "")
    dues = max(answer.dues for answer in answers)
    assert any(dues)
    store.leave(Ask(path, 1, tuple(due or 1 for due in dues)))
    store.peek(path)
    store.set_limits({"all": "1/s"})
    store.limits()
    return depth, tasks, recorder.calls


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_header_that_names_it(name):
    said = header(name)
    assert said["name"] == name
    assert said["errors"] in ("none after the first write", "none: nothing is written")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_says_so_writes_nothing(name):
    source = files("bucketflow_celery").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    writes = re.findall(r"redis\.call\('(?!GET|MGET|TIME)\w+'", source)
    assert bool(writes) == (header(name)["errors"] == "none after the first write")


def test_admit(recorded):
    depth, tasks, calls = recorded
    keys, args, reply = calls["admit"]
    said = header("admit")
    fixed, _, rest = said["argv"].partition("then for each task:")
    each, _, level = rest.partition("and for each level, root first:")
    assert len(keys) == 1 + depth
    assert len(args) == words(fixed) + tasks * (words(each) + depth * words(level))
    fixed, _, each = said["returns"].partition("else ")[2].partition("then for each task:")
    each, _, level = each.rpartition(", ")
    assert level.startswith("due µs at each level")
    assert len(reply) == words(fixed) + tasks * (words(each) + depth)


def test_leave(recorded):
    depth, _, calls = recorded
    keys, args, reply = calls["leave"]
    fixed, _, level = header("leave")["argv"].partition("then for each level:")
    assert len(keys) == depth
    assert len(args) == words(fixed) + depth * words(level)
    assert 0 <= reply <= depth


def test_peek(recorded):
    depth, _, calls = recorded
    keys, args, reply = calls["peek"]
    said = header("peek")
    assert len(keys) == depth
    assert (said["argv"], args) == ("none", [])
    assert said["returns"].startswith("{now µs, then full_at, line_at, capacity and fill_rate of each level")
    assert len(reply) == 1 + 4 * depth


def test_limits_and_set_limits(recorded):
    _, _, calls = recorded
    keys, args, reply = calls["set_limits"]
    assert words(header("set_limits")["keys"].split("  ")[-1].split(";")[0]) == len(keys) == 2
    assert words(header("set_limits")["argv"].split(";")[0]) == len(args) == 2
    assert header("set_limits")["returns"] == str(reply)
    keys, args, reply = calls["limits"]
    assert (header("limits")["argv"], args) == ("none", [])
    version, table = reply
    assert version
    assert json.loads(table) == {"all": "1/s"}


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_knows_an_operation_by_the_name_we_computed(redis_client, name):
    script = load_script("bucketflow_celery", name)
    assert redis_client.script_load(script.text) == script.sha


def test_limits_that_are_taken_back_leave_nothing(redis_client):
    store = RedisStore(ScriptRunner(redis_client), "twin")
    assert store.limits() == ("", None)
    store.set_limits({"all": None})
    assert store.limits()[1] == {"all": None}
    store.set_limits(None)
    assert store.limits() == ("", None)
    assert not redis_client.keys()


def test_every_key_has_one_hash_tag(recorded):
    _, _, calls = recorded
    for keys, _, _ in calls.values():
        assert all(key.startswith(b"{twin}:") for key in keys)
