"""The public API: its names, the signatures of 0.1.0, and a docstring for each."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path

import pytest

import bucketflow

ROOT = Path(__file__).parents[2]

NAMES = [
    "AsyncTokenBucket",
    "BucketflowError",
    "ConfigError",
    "CostExceedsCapacity",
    "Decision",
    "HierarchicalTokenBucket",
    "Limit",
    "NotPicklable",
    "RateLimitExceeded",
    "StoreAccessDenied",
    "StoreFull",
    "StoreUnavailable",
    "TokenBucket",
    "async_rate_limit",
    "create_bucket_hierarchy",
    "rate_limit",
]

KEPT = [  # its path in 0.1.0, its positional parameters
    ("bucketflow.TokenBucket", "capacity fill_rate initial_tokens=None"),
    ("bucketflow.TokenBucket.consume", "self tokens=1 block=False"),
    ("bucketflow.rate_limit", "tokens_per_second capacity=None block=True"),
    ("bucketflow.decorators.rate_limit", "tokens_per_second capacity=None block=True"),
    ("bucketflow.token_bucket.TokenBucket", "capacity fill_rate initial_tokens=None"),
    ("bucketflow.async_token_bucket.AsyncTokenBucket", "capacity fill_rate initial_tokens=None"),
    ("bucketflow.async_token_bucket.AsyncTokenBucket.consume", "self tokens=1 block=False"),
    ("bucketflow.async_token_bucket.AsyncTokenBucket.get_tokens", "self"),
    ("bucketflow.async_token_bucket.async_rate_limit", "tokens_per_second capacity=None block=True"),
    (
        "bucketflow.hierarchical.HierarchicalTokenBucket",
        "capacity fill_rate parent=None initial_tokens=None name=None",
    ),
    ("bucketflow.hierarchical.HierarchicalTokenBucket.consume", "self tokens=1 block=False"),
    ("bucketflow.hierarchical.create_bucket_hierarchy", "config"),
    ("bucketflow.decorators.RateLimitExceeded", "key cost retry_after"),
]

PUBLIC_MODULES = [
    "bucketflow",
    "bucketflow.async_token_bucket",
    "bucketflow.local.base",
    "bucketflow.clock",
    "bucketflow.algorithm.gcra",
    "bucketflow.decorators",
    "bucketflow.errors",
    "bucketflow.hierarchical",
    "bucketflow.limit",
    "bucketflow.algorithm.wait_queue",
    "bucketflow.local.fast_path",
    "bucketflow.local.locked_tree",
    "bucketflow.testing",
    "bucketflow.token_bucket",
    "bucketflow.algorithm.wait_tree",
    "bucketflow.distributed.polling_queue",
]


def find(path):
    """Return the object at *path*: an attribute of a module, or an attribute of that."""
    module, names = path, []
    while True:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, name = module.rpartition(".")
            names.insert(0, name)
        else:
            break
    for name in names:
        found = getattr(found, name)
    return found


def test_the_exported_names_are_the_documented_ones():
    assert bucketflow.__all__ == NAMES


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_every_all_is_sorted_and_its_names_exist(module):
    module = importlib.import_module(module)
    assert list(module.__all__) == sorted(module.__all__, key=lambda name: (not name.isupper(), name))
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_everything_public_is_documented(module):
    module = importlib.import_module(module)
    assert inspect.getdoc(module)
    for name in module.__all__:
        public = getattr(module, name)
        if not (inspect.isclass(public) or inspect.isfunction(public)):
            continue
        assert inspect.getdoc(public), name
        for method, value in vars(public).items() if inspect.isclass(public) else ():
            if not method.startswith("_") and (callable(value) or isinstance(value, (property, classmethod))):
                assert inspect.getdoc(value), f"{name}.{method}"


@pytest.mark.parametrize(("path", "parameters"), KEPT)
def test_paths_and_signatures_of_0_1_0_are_kept(path, parameters):
    signature = inspect.signature(find(path)).parameters.values()
    positional = [each for each in signature if each.kind is each.POSITIONAL_OR_KEYWORD]
    shown = [each.name if each.default is each.empty else f"{each.name}={each.default}" for each in positional]
    assert shown[: len(parameters.split())] == parameters.split()
    assert all(each.default is not each.empty for each in positional[len(parameters.split()) :])


def test_the_properties_of_0_1_0_are_kept():
    bucket = bucketflow.TokenBucket(5, 2)
    assert (bucket.tokens, bucket.capacity, bucket.fill_rate) == (5, 5, 2)
    parent = bucketflow.HierarchicalTokenBucket(5, 2, name="shop")
    child = bucketflow.HierarchicalTokenBucket(3, 2, parent)
    assert (child.parent, child.children, parent.children, parent.name) == (parent, [], [child], "shop")


def test_the_version_is_the_packaged_version():
    (version,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert bucketflow.__version__ == version


def test_types_are_shipped():
    assert (ROOT / "bucketflow" / "py.typed").exists()
