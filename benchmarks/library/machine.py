"""The machine of a run and the versions of the packages."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import bucketflow
from benchmarks.server import redis_executable

PACKAGES = (
    "redis",
    "hiredis",
    "celery",
    "aiolimiter",
    "asynciolimiter",
    "celery-heimdall",
    "dramatiq",
    "limits",
    "pyrate-limiter",
    "rust-py-rate-limit",
    "steindamm",
    "throttled-py",
    "token-bucket",
)


def machine() -> dict[str, str]:
    """Return the facts of the machine, by name."""
    gigabytes = psutil.virtual_memory().total / 2**30
    return {
        "day": datetime.now(tz=timezone.utc).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{gigabytes:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": _server(),
    }


def versions() -> dict[str, str]:
    """Return the version of each package, by name."""
    found = {"bucketflow": bucketflow.__version__ + (", compiled" if compiled() else "")}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def compiled() -> bool:
    """Return whether the core of this installation is compiled."""
    return not str(importlib.import_module("bucketflow.algorithm.gcra").__file__).endswith(".py")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _server() -> str:
    shown = subprocess.run([redis_executable(), "--version"], capture_output=True, text=True, check=True).stdout
    return " ".join(shown.split()[:3]).replace(" v=", " ").replace(" server", "")
