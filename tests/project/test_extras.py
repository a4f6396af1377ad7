"""What an import says in an interpreter in which a package of an extra is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bucketflow.extras import explained

#: Blocks a package as if it were not installed, in one of three ways, then imports a module.
SCRIPT = """
import importlib, importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == sys.argv[1]:
            kind = ModuleNotFoundError if sys.argv[2] == "module" else ImportError
            raise kind(f"No module named {name!r}", name=name)

if sys.argv[2] == "none":
    sys.modules[sys.argv[1]] = None
else:
    sys.meta_path.insert(0, Blocker())
try:
    importlib.import_module(sys.argv[3])
except ImportError as error:
    print(type(error).__name__, error)
else:
    print("imported")
"""


def imported(missing, module, way="module"):
    argv = [sys.executable, "-c", SCRIPT, missing, way, module]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


MISSING = [  # package, imported module, extra
    ("redis", "bucketflow.distributed", "distributed"),
    ("redis", "bucketflow.distributed.buckets", "distributed"),
    ("redis", "bucketflow_celery", "celery"),
    ("celery", "bucketflow_celery", "celery"),
    ("celery", "bucketflow_celery.testing", "celery"),
    ("celery", "bucketflow_celery.worker.bootstep", "celery"),
    ("kombu", "bucketflow_celery", "celery"),
]


@pytest.mark.parametrize(("missing", "module", "extra"), MISSING)
def test_an_import_without_its_extra_says_what_to_install(missing, module, extra):
    said = imported(missing, module)
    assert said.startswith("ModuleNotFoundError ")
    assert f'pip install "bucketflow[{extra}]"' in said
    assert missing in said


@pytest.mark.parametrize("way", ["none", "import"])
@pytest.mark.parametrize(("missing", "module"), [("redis", "bucketflow.distributed"), ("celery", "bucketflow_celery")])
def test_it_says_so_however_the_import_fails(missing, module, way):
    assert 'pip install "bucketflow[' in imported(missing, module, way)


@pytest.mark.parametrize("module", ["bucketflow", "bucketflow.testing", "bucketflow.clock"])
@pytest.mark.parametrize("missing", ["redis", "celery"])
def test_the_library_needs_no_extra(missing, module):
    assert imported(missing, module) == "imported"


def test_the_redis_buckets_need_no_celery():
    assert imported("celery", "bucketflow.distributed") == "imported"


def test_the_error_of_a_package_that_no_extra_installs_is_unchanged():
    error = ModuleNotFoundError("No module named 'async_timeout'", name="async_timeout")
    assert explained(error, "bucketflow.distributed", "distributed") is error
