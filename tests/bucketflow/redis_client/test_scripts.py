"""The Lua operations as package data: found, headed, and bound as their headers say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from bucketflow.distributed import RedisTokenBucket
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.scripts import Script, load_script

OPERATIONS = sorted(
    path.name.removesuffix(".lua")
    for path in files("bucketflow").joinpath("lua").iterdir()
    if path.name.endswith(".lua") and path.name != "gcra.lua"
)
HEADER = re.compile(
    r"-- (?P<name>\w+): .+\n"
    r"-- KEYS\[i\] +(?P<keys>.+)\n"
    r"-- ARGV +(?P<argv>.+)\n"
    r"-- returns +(?P<returns>.+)\n"
    r"-- errors +(?P<errors>.+)\n"
)


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


class Recorder(ScriptRunner):
    """Runs calls, and remembers them."""

    def __init__(self, client):
        super().__init__(client)
        self.calls = {}

    def run_call(self, call):
        return self.run_all([call])[0]

    def run_all(self, calls):
        replies = super().run_all(calls)
        for call, reply in zip(calls, replies, strict=True):
            self.calls[call.script.name] = call.keys, call.args, reply
        return replies


@pytest.fixture(params=[1, 2, 3])
def calls(request, redis_client):
    """Return, by lease, keys, arguments and reply of every operation, as the binding makes them at this depth."""
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
def test_the_header_says_what_the_binding_sends_and_gets(name, calls):
    depth, recorded = calls
    said = header(name)
    keys, args, reply = recorded[None][name]
    assert said["name"] == name
    assert len(keys) == depth
    fixed, each = words(said["argv"])
    assert len(args) == fixed + each * depth
    fixed, each = words(said["returns"])
    length = len(reply) // 8 if isinstance(reply, bytes) else len(reply)  # packed doubles
    assert length == (fixed + each * depth if each else fixed * depth)
    assert said["errors"] == "none after the first write"


def test_the_header_says_what_a_lease_adds(calls):
    depth, recorded = calls
    _, args, reply = recorded[None]["consume"]
    _, more_args, longer_reply = recorded[5]["consume"]
    said = LEASE.search(source("consume"))
    assert len(more_args) == len(args) + words(said["argv"])[0]
    fixed, each = words(said["returns"])
    assert len(longer_reply) // 8 == len(reply) // 8 + fixed + each * depth


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_knows_a_script_by_the_name_we_computed(redis_client, name):
    script = load_script("bucketflow", name)
    assert redis_client.script_load(script.text) == script.sha


def test_core_comes_first_and_a_script_is_read_once():
    script = load_script("bucketflow", "refund")
    assert script.text.startswith(source("gcra"))
    assert load_script("bucketflow", "refund") is script


def test_consume_stands_alone():
    assert load_script("bucketflow", "consume").text == source("consume")


def test_another_text_is_another_script():
    assert Script.compose("a", "return 1").sha != Script.compose("a", "return 2").sha


def test_an_unknown_operation_is_an_error():
    with pytest.raises(FileNotFoundError):
        load_script("bucketflow", "nonsense")


def test_importing_reads_no_script():
    code = (
        "import bucketflow.distributed, bucketflow.redis_client.scripts as s\n"
        "assert s.load_script.cache_info().currsize == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
