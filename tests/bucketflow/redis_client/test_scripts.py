"""Lua scripts: packaged, assembled with the constants of Python, and called as their headers say."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import bucketflow
from bucketflow.algorithm.mirror import CONSTANTS, GCRA
from bucketflow.distributed import RedisTokenBucket
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script, load_script
from bucketflow_celery.store import scripts as store_scripts

OPERATIONS = sorted(
    path.name.removesuffix(".lua")
    for path in files("bucketflow").joinpath("lua").iterdir()
    if path.name.endswith(".lua") and path.name != "gcra.lua"
)
#: What each operation is assembled with, as the buckets do it.
PRELUDES = {"consume": (), "refund": (GCRA,)}
#: Every Lua file of both packages, by the constants that it gets from Python.
LUA_FILES = {
    Path(str(path)): constants
    for package, constants in (("bucketflow", CONSTANTS), ("bucketflow_celery.store", store_scripts.CONSTANTS))
    for path in files(package).joinpath("lua").iterdir()
    if path.name.endswith(".lua")
}
by_file = pytest.mark.parametrize("path", sorted(LUA_FILES), ids=lambda path: f"{path.parts[-3]}/{path.stem}")
HEADER = re.compile(
    r"-- (?P<name>\w+): .+\n"
    r"-- KEYS\[i\] +(?P<keys>.+)\n"
    r"-- ARGV +(?P<argv>.+)\n"
    r"-- returns +(?P<returns>.+)\n"
    r"-- errors +(?P<errors>.+)\n"
    r"-- mirrors +.+\n"
)
MIRRORS = re.compile(r"^-- mirrors +(.+)\n", re.MULTILINE)
#: A constant that a Lua file defines by itself: `local NAME = 1`, or `local ONE, OTHER = 1, 2`.
CONSTANT = re.compile(r"^local ([A-Z][A-Z_, ]*) = +-?\d", re.MULTILINE)


def source(name):
    return files("bucketflow").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")


def header(name):
    match = HEADER.match(source(name))
    assert match, f"{name}.lua has no header of the agreed form"
    return match


LEASE = re.compile(r"-- lease +.+\n--   ARGV +also (?P<argv>.+)\n--   returns +before the rest (?P<returns>.+)\n")


def words(text):
    """Return how many things *text* lists, and how many more for each level."""
    fixed, _, each = re.sub(r"\(.*?\)", "", text).partition("then ")
    return len([word for word in fixed.split(",") if word.strip(" {}")]), len(
        [word for word in each.split(",") if word.strip(" {}")]
    )


def load(name):
    return load_script("bucketflow", name, PRELUDES[name], CONSTANTS)


class Recorder(ScriptRunner):
    """Runs calls, and records them by the name of the script."""

    def __init__(self, client):
        super().__init__(client)
        self.calls = {}

    def run_call(self, call):
        return self.run_all([call])[0]

    def run_all(self, calls):
        replies = super().run_all(calls)
        for call, reply in zip(calls, replies, strict=True):
            assert call.script == load(call.script.name)
            self.calls[call.script.name] = call.keys, call.args, reply
        return replies


@pytest.fixture(params=[1, 2, 3])
def calls(request, redis_client):
    """Return the depth of a path; and, by lease, the recorded keys, arguments and reply of every operation."""
    recorded = {}
    for lease in (None, 5):
        recorder, bucket = Recorder(redis_client), None
        for level in range(request.param):
            bucket = RedisTokenBucket(redis_client, f"level{level}", 10, 1, parent=bucket, lease=lease)
        bucket._runner = recorder
        bucket.consume()
        if lease is None:
            bucket.refund()
        recorded[lease] = dict(recorder.calls)
        bucket.close()  # settles the lease, with no cost
    return request.param, recorded


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_header_states_what_the_buckets_send_and_receive(name, calls):
    depth, recorded = calls
    stated = header(name)
    keys, args, reply = recorded[None][name]
    assert stated["name"] == name
    assert len(keys) == depth
    fixed, each = words(stated["argv"])
    assert len(args) == fixed + each * depth
    fixed, each = words(stated["returns"])
    length = len(reply) // 8 if isinstance(reply, bytes) else len(reply)  # packed doubles
    assert length == (fixed + each * depth if each else fixed * depth)
    assert stated["errors"] == "none after the first write"


def test_the_header_of_consume_states_what_a_lease_adds(calls):
    depth, recorded = calls
    _, args, reply = recorded[None]["consume"]
    _, more_args, longer_reply = recorded[5]["consume"]
    stated = LEASE.search(source("consume"))
    assert len(more_args) == len(args) + words(stated["argv"])[0]
    fixed, each = words(stated["returns"])
    assert len(longer_reply) // 8 == len(reply) // 8 + fixed + each * depth


@by_file
def test_every_header_names_the_python_that_the_file_mirrors_or_says_why_there_is_none(path):
    (mirrors,) = MIRRORS.findall(path.read_text(encoding="utf-8"))
    if mirrors.startswith("nothing: "):
        return
    for mirror in mirrors.split("; "):
        file, _, names = mirror.partition(": ")
        module = importlib.import_module(file.removesuffix(".py").replace("/", "."))
        for name in names.split(", "):
            owner, _, method = name.partition(".")
            assert hasattr(getattr(module, owner), method or "__name__"), f"{path.name}: {name}"


# Constants


@by_file
def test_no_lua_file_defines_a_constant_that_python_defines(path):
    python = {
        name
        for package in (bucketflow, store_scripts.dispatch)
        for file in Path(package.__file__).parents[package is not bucketflow].rglob("*.py")
        for name in re.findall(r"^([A-Z][A-Z_]+)(?::.+?)? = ", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert {"SECOND", "HALF_TICK", "RESERVATION_TTL", "DEDUP_TTL"} <= python
    defined = {name for names in CONSTANT.findall(path.read_text(encoding="utf-8")) for name in names.split(", ")}
    assert not defined & python
    assert not defined, "a constant of one side alone is defined in Python, too: scripts share it"


@by_file
def test_a_lua_file_uses_only_constants_that_it_gets(path):
    text = re.sub(r"--.*", "", path.read_text(encoding="utf-8"))
    code = re.sub(r"'[^']*'", "", text)
    used = set(re.findall(r"(?<![\w.])[A-Z][A-Z_]{2,}\b", code)) - {"KEYS", "ARGV"}
    preludes = [text, *(other.read_text() for other in LUA_FILES if other.stem in ("level", "backlog"))]
    declared = {
        name for one in preludes for names in re.findall(r"^local ([A-Z][A-Z_, ]+) =", one, re.MULTILINE)
        for name in names.split(", ")
    }  # fmt: skip
    assert used - declared <= {name for name, _ in LUA_FILES[path]}


@pytest.mark.parametrize("package", ["bucketflow", "bucketflow_celery"])
def test_every_shared_constant_is_used_by_some_script(package):
    own = {path: constants for path, constants in LUA_FILES.items() if package in path.parts}
    (constants,) = set(own.values())
    texts = "\n".join(re.sub(r"--.*", "", path.read_text(encoding="utf-8")) for path in LUA_FILES)
    assert [name for name, _ in constants if not re.search(rf"\b{name}\b", texts)] == []


@pytest.mark.parametrize("number", [0, -1, 0.5, 1 / 3, 0.0, 1 << 53, 86_400_000_000])
def test_a_constant_has_the_same_bits_in_lua_as_in_python(redis_client, number):
    prelude = load_script(*GCRA, constants=CONSTANTS | {("NUMBER", number)})
    reply = redis_client.eval(prelude.text + "return exact(NUMBER)", 0)
    assert float(reply) == number


# Assembly


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_knows_a_script_by_the_sha_that_was_computed(redis_client, name):
    script = load(name)
    assert redis_client.script_load(script.text) == script.sha


def test_a_script_is_its_constants_then_its_preludes_then_its_own_file():
    constants = "".join(f"local {name} = {value!r}\n" for name, value in sorted(CONSTANTS))
    assert load("refund").text == constants + source("gcra") + "\n" + source("refund")


def test_a_script_is_read_once():
    assert load("refund") is load("refund")


def test_consume_has_no_prelude():
    constants = "".join(f"local {name} = {value!r}\n" for name, value in sorted(CONSTANTS))
    assert load("consume").text == constants + source("consume")


def test_another_text_is_another_script():
    assert Script.of("a", "return 1").sha != Script.of("a", "return 2").sha


def test_an_unknown_operation_is_an_error():
    with pytest.raises(FileNotFoundError):
        load_script("bucketflow", "nonsense")


def test_an_import_reads_no_script():
    code = (
        "import bucketflow.distributed, bucketflow_celery.store.redis_store, bucketflow.redis_client.scripts as s\n"
        "assert s.load_script.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
