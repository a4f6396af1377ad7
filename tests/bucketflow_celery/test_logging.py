"""
Loggers and log lines are documented. The names of the loggers do not depend on the module layout, so a user's logging
configuration survives a moved file.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import bucketflow_celery

PACKAGE = Path(bucketflow_celery.__file__).parent
LOGGERS = {f"bucketflow_celery.{name}" for name in ("admission", "parking", "throttle", "worker")}


def logger_arguments(source):
    """Return the source of the argument of each ``getLogger`` call."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ", ".join(map(ast.unparse, call.args))
        for call in calls
        if getattr(call.func, "attr", getattr(call.func, "id", None)) in ("getLogger", "get_logger", "get_task_logger")
    ]


MODULES = {
    str(path.relative_to(PACKAGE)): arguments
    for path in sorted(PACKAGE.rglob("*.py"))
    if "demo" not in path.relative_to(PACKAGE).parts and (arguments := logger_arguments(path.read_text()))
}


@pytest.mark.parametrize("module", MODULES)
def test_a_logger_has_one_of_the_four_documented_names(module):
    assert [name for name in MODULES[module] if name not in map(repr, LOGGERS)] == []


def test_every_documented_logger_is_used():
    used = {name for arguments in MODULES.values() for name in arguments}
    assert set(map(repr, LOGGERS)) <= used


DOCUMENTED = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text().partition("## Log lines")[2]
LEVELS = ("debug", "info", "warning", "error", "critical", "exception")
LINES = sorted(
    {
        call.args[0].value
        for path in PACKAGE.rglob("*.py")
        if "demo" not in path.relative_to(PACKAGE).parts
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", None) in LEVELS
        if call.args and isinstance(call.args[0], ast.Constant)
    }
)


@pytest.mark.parametrize("line", LINES)
def test_every_log_line_is_documented(line):
    longest = max(re.split(r"%[\w.]+|: ", line), key=len)
    assert longest.strip() in DOCUMENTED
