"""The Lua operations as package data: found, headed, and bound as their headers say."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.resources import files

import pytest

from bucketflow.distributed import RedisTokenBucket
from bucketflow.scripts import Script, load_script

OPERATIONS = sorted(
    path.name.removesuffix(".lua")
    for path in files("bucketflow").joinpath("lua").iterdir()
    if path.name.endswith(".lua") and path.name != "core.lua"
)
HEADER = re.compile(
    r"-- (?P<name>\w+): .+\n"
    r"-- KEYS\[i\] +(?P<keys>.+)\n"
    r"-- ARGV +(?P<argv>.+)\n"
    r"-- returns +(?P<returns>.+)\n"
    r"-- errors +(?P<errors>.+)\n"
)


def header(name):
    source = files("bucketflow").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
    match = HEADER.match(source)
    assert match, f"{name}.lua has no header of the agreed form"
    return match


def words(text):
    """Return how many things *text* lists, and how many more for each level."""
    fixed, _, each = re.sub(r"\(.*?\)", "", text).partition("then ")
    return len([word for word in fixed.split(",") if word.strip(" {}")]), len(
        [word for word in each.split(",") if word]
    )


class Recorder:
    """Hands calls on, and remembers them."""

    def __init__(self, runner):
        self.runner, self.calls = runner, {}

    def run(self, script, keys, args):
        reply = self.runner.run(script, keys, args)
        self.calls[script.name] = keys, args, reply
        return reply


@pytest.fixture(params=[1, 2, 3])
def calls(request, redis_client):
    """Return keys, arguments and reply of every operation, as the binding makes them at this depth."""
    bucket = None
    for level in range(request.param):
        bucket = RedisTokenBucket(redis_client, f"level{level}", 10, 1, parent=bucket)
    recorder = bucket._runner = Recorder(bucket._runner)
    bucket.consume()
    bucket.refund()
    return request.param, recorder.calls


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_header_says_what_the_binding_sends_and_gets(name, calls):
    depth, recorded = calls
    said = header(name)
    keys, args, reply = recorded[name]
    assert said["name"] == name
    assert len(keys) == depth
    fixed, each = words(said["argv"])
    assert len(args) == fixed + each * depth
    fixed, each = words(said["returns"])
    length = len(reply) // 8 if isinstance(reply, bytes) else len(reply)  # packed doubles
    assert length == (fixed + each * depth if each else fixed * depth)
    assert said["errors"] == "none after the first write"


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_knows_a_script_by_the_name_we_computed(redis_client, name):
    script = load_script("bucketflow", name)
    assert redis_client.script_load(script.text) == script.sha


def test_core_comes_first_and_a_script_is_read_once():
    script = load_script("bucketflow", "consume")
    assert script.text.startswith(files("bucketflow").joinpath("lua", "core.lua").read_text(encoding="utf-8"))
    assert load_script("bucketflow", "consume") is script


def test_another_text_is_another_script():
    assert Script.compose("a", "return 1").sha != Script.compose("a", "return 2").sha


def test_an_unknown_operation_is_an_error():
    with pytest.raises(FileNotFoundError):
        load_script("bucketflow", "nonsense")


def test_importing_reads_no_script():
    code = "import bucketflow.distributed, bucketflow.scripts as s; assert s.load_script.cache_info().currsize == 0"
    subprocess.run([sys.executable, "-c", code], check=True)
