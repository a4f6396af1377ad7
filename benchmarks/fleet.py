"""A Redis, some workers and a producer on this machine, for the time of one measurement."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def free_port() -> int:
    """Return a port of the loopback interface that nobody uses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_until(predicate: Callable[[], object], timeout: float) -> bool:
    """Wait until *predicate* is true; return whether it became so within *timeout* seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if predicate():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def redis_server() -> Iterator[int]:
    """Start a server without persistence and yield its port."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="bucketflow-bench-")
    executable = os.environ.get("REDIS_SERVER") or shutil.which("redis-server") or "redis-server"
    argv = [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        if not wait_until(lambda: _answers(client), 10):
            raise RuntimeError(f"{executable} does not answer")
        yield port
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


@dataclass
class Fleet:
    """
    Workers of ``benchmarks/tasks.py``.

    Attributes:
        port: The Redis server's.
        mode: ``"throttle"``, ``"plain retry"`` or ``"none"``.
        limits: The throttle's table of limits.
        queues: The queues the workers consume.
        workers: How many there are.
        concurrency: Slots of each.
        visibility: The broker's visibility timeout in seconds.
        count: Whether deliveries are counted: that costs a little.
    """

    port: int
    mode: str
    limits: Mapping[str, Any]
    queues: Sequence[str] = ("celery",)
    workers: int = 2
    concurrency: int = 4
    visibility: float = 3600
    count: bool = True
    processes: list[psutil.Popen] = field(default_factory=list)

    def environment(self) -> dict[str, str]:
        """Return what tells ``tasks.py`` how to behave."""
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)]),
            "BENCH_PORT": str(self.port),
            "BENCH_MODE": self.mode,
            "BENCH_LIMITS": json.dumps(self.limits),
            "BENCH_VISIBILITY": str(self.visibility),
            "BENCH_COUNT": str(int(self.count)),
        }

    def start(self) -> None:
        """Start the workers and wait until all of them are ready."""
        ready = redis.Redis(port=self.port, db=3)
        ready.delete("ready")
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        for number in range(self.workers):
            argv = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "prefork", "-l", "ERROR"]
            argv += ["-c", str(self.concurrency), "-n", f"w{number}@bench", "-Q", ",".join(self.queues)]
            argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
            self.processes.append(psutil.Popen(argv, env=self.environment(), cwd=HERE, start_new_session=True, **quiet))
        if not wait_until(lambda: int(ready.get("ready") or 0) >= self.workers, 30):
            raise RuntimeError("the workers do not start")

    def kill(self) -> None:
        """End every worker as the out-of-memory killer would."""
        for process in self.processes:
            for victim in [*process.children(recursive=True), process]:
                victim.kill()
            process.wait()
        self.processes.clear()

    def stop(self) -> None:
        """End the workers warmly."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except psutil.TimeoutExpired:
                self.kill()
                break
        self.processes.clear()

    def cpu(self) -> float:
        """Return the CPU seconds the workers have used so far, children included."""
        total = 0.0
        for process in self.processes:
            for one in [process, *process.children(recursive=True)]:
                times = one.cpu_times()
                total += times.user + times.system
        return total
