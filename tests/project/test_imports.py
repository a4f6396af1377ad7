"""Imports follow the architecture, lazy ones included, and importing has no side effects."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from architecture import CELERY, IMPURE, LIBRARY, OF_THE_LIBRARY, OUTSIDE, PURE, THROTTLE, TOP

ROOT = Path(__file__).parents[2]
PACKAGES = ["bucketflow", "bucketflow_celery"]

#: Run in a fresh interpreter: imports the package, prints what was imported with it, and fails at a socket or a thread.
FRESH = """
import json, sys
before = set(sys.modules)
def forbid(event, args):
    if event in ("socket.__new__", "socket.connect", "_thread.start_new_thread", "subprocess.Popen"):
        raise RuntimeError(f"importing did {event}")
    if event == "open" and isinstance(args[1], str) and set("wax+") & set(args[1]):
        raise RuntimeError(f"importing wrote {args[0]}")
sys.addaudithook(forbid)
import bucketflow, bucketflow.testing
roots = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(roots - sys.stdlib_module_names)))
"""


def modules():
    """Return every module of both packages by its name, parsed."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(module):
    """Return every module that *module* imports, in functions and for type checkers too."""
    found = set()
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & MODULES.keys()) or {node.module}
    return found


def reached_from(module):
    """Return *module* and all modules of the packages that it imports, directly or not."""
    reached, ahead = set(), [module]
    while ahead:
        name = ahead.pop()
        if name not in reached:
            reached.add(name)
            ahead += imports(name) & MODULES.keys()
    return reached


def test_no_import_is_part_of_a_cycle():
    graph = {module: (imports(module) & MODULES.keys()) - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def layer_of(module):
    """Return the package of *module*, and its folder or, at the top, its layer."""
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    for layer, names in TOP[package].items():
        if first in names:
            return package, layer
    return package, first


def allowed(module):
    """Return the layers that *module* may import."""
    package, layer = layer_of(module)
    if package == "bucketflow":
        return {(package, one) for one in [layer, *LIBRARY[layer]]}
    library = {("bucketflow", one) for one in ["foundation", *OF_THE_LIBRARY.get(layer, [])]}
    return library | {(package, one) for one in [layer, *THROTTLE[layer]]}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_the_table_allows(module):
    forbidden = {one for one in imports(module) & MODULES.keys() if layer_of(one) not in allowed(module)}
    assert not forbidden


@pytest.mark.parametrize("table", [LIBRARY, THROTTLE], ids=["library", "throttle"])
def test_the_table_has_no_upward_arrow(table):
    order = list(table)
    for layer, below in table.items():
        assert all(order.index(one) < order.index(layer) for one in below), layer


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_from_outside_only_what_its_layer_may(module):
    roots = {name.partition(".")[0] for name in imports(module)} - {*PACKAGES} - sys.stdlib_module_names
    assert roots <= OUTSIDE.get(".".join(layer_of(module)), set())


@pytest.mark.parametrize("module", [name for name in sorted(MODULES) if ".".join(layer_of(name)) in PURE])
def test_what_is_pure_knows_no_clock_no_lock_and_no_io(module):
    assert not imports(module) & IMPURE


def test_the_library_knows_nothing_of_celery():
    for module in MODULES:
        if module.partition(".")[0] == "bucketflow":
            roots = {name.partition(".")[0] for name in imports(module)}
            assert not roots & {"bucketflow_celery", *CELERY}, module


def test_what_the_library_imports_is_the_standard_library():
    for module in reached_from("bucketflow"):
        roots = {name.partition(".")[0] for name in imports(module)} - {"bucketflow"}
        assert roots <= sys.stdlib_module_names, module


def test_beside_it_the_library_imports_redis_and_nothing_else():
    for module in MODULES:
        if module.partition(".")[0] == "bucketflow":
            roots = {name.partition(".")[0] for name in imports(module)} - {"bucketflow"}
            assert roots - sys.stdlib_module_names <= {"redis"}, module


def test_importing_opens_no_socket_and_starts_no_thread_and_brings_no_other_package():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    run = subprocess.run(
        [sys.executable, "-S", "-c", FRESH], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == ["bucketflow"]
