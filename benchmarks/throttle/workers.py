"""Celery workers on this machine for the time of one measurement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import redis

from bucketflow_celery.demo.processes import wait_until

ROOT = Path(__file__).resolve().parents[2]

#: The module of the tasks, which begins their names.
TASKS = "benchmarks.throttle.tasks"


@dataclass
class Fleet:
    """
    Workers that run ``tasks.py``.

    Attributes:
        port: The port of the Redis server.
        mode: ``"throttle"``, ``"park"``, ``"plain retry"``, ``"celery-heimdall"`` or ``"none"``.
        limits: The throttle's table of limits.
        queues: The queues that the workers consume.
        workers: The number of workers.
        concurrency: Pool processes of each.
        visibility: The broker's visibility timeout in seconds.
        count: Whether deliveries are counted, which costs a little time.
        lease: Seconds after which the lease of a killed worker expires and its parked tasks go to another.
        acks_late: Whether a task is acknowledged after it has run.
        log: A file to which the workers' warnings and errors are appended; ``None``: they are discarded.
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
        """Return the environment variables that configure ``tasks.py``."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
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
            raise RuntimeError("the workers are not ready after 30 s")

    def restart(self, number: int) -> None:
        """Start a killed worker again under its name, and wait until it is ready."""
        ready = redis.Redis(port=self.port, db=3)
        ready.delete("ready")
        self.processes[number] = self._spawn(number)
        if not wait_until(lambda: ready.get("ready"), 30):
            raise RuntimeError("the restarted worker is not ready after 30 s")

    def _spawn(self, number: int) -> psutil.Popen:
        argv = [sys.executable, "-m", "celery", "-A", TASKS, "worker", "-P", "prefork"]
        argv += ["-l", "WARNING" if self.log else "ERROR"]
        argv += ["-c", str(self.concurrency), "-n", f"w{number}@bench", "-Q", ",".join(self.queues)]
        argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with (self.log or Path(os.devnull)).open("ab") as log:
            return psutil.Popen(
                argv, env=self.environment(), cwd=ROOT, start_new_session=True, stdout=log, stderr=subprocess.STDOUT
            )

    def kill(self) -> None:
        """Kill every worker and its children, as the out-of-memory killer does."""
        for process in self.processes:
            _kill(process)
        self.processes.clear()

    def kill_one(self, number: int) -> None:
        """Kill one worker in the same way; :meth:`restart` starts it again."""
        _kill(self.processes[number])

    def memory(self) -> list[float]:
        """Return the resident memory of each worker's main process, in MB."""
        return [process.memory_info().rss / 1e6 for process in self.processes]

    def stop(self) -> None:
        """Stop the workers by a warm shutdown; kill them after 20 s."""
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
        """Return the CPU seconds that the workers and their children have used."""
        total = 0.0
        for process in self.processes:
            for one in [process, *process.children(recursive=True)]:
                times = one.cpu_times()
                total += times.user + times.system
        return total


def _kill(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        # The main process first: otherwise it would see its children die and report their tasks as lost.
        for victim in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                victim.kill()
    process.wait()
