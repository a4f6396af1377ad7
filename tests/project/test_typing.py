"""Type checkers find the mistakes of a user, and only those: see typed/user_code.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USER_CODE = Path(__file__).parent / "typed" / "user_code.py"


def check(*argv):
    command = [sys.executable, "-m", *map(str, argv)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_mypy_finds_every_mistake_in_a_users_file_and_no_other(tmp_path):
    check("mypy", "--strict", "--cache-dir", tmp_path, USER_CODE)


def test_pyright_finds_every_mistake_in_a_users_file_and_no_other(tmp_path):
    pytest.importorskip("basedpyright")  # the pyright that brings its own node
    config = {
        "include": [str(USER_CODE)],
        "extraPaths": [str(ROOT)],
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": False,  # they are mypy's
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    check("basedpyright", "--project", tmp_path, "--pythonpath", sys.executable)


def test_every_mistake_in_the_users_file_is_marked_for_both():
    marked = [line for line in USER_CODE.read_text().splitlines() if "# pyright: ignore[" in line]
    assert len(marked) == 9
    assert all("# type: ignore[" in line for line in marked)
