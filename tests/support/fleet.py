"""Real workers as local processes, one fleet a test."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from processes import Process, wait_until
from records import Records
from servers import RedisServer

from bucketflow_celery import Throttle

__all__ = ["Fleet", "Worker"]

HERE = Path(__file__).parent
#: What workers tell each other about is not tested here, and makes them slower to start.
ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")


class Worker:
    """One ``celery worker``; it lives until :meth:`kill`, :meth:`terminate` or the end of its test."""

    def __init__(self, directory: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = Process([sys.executable, "-m", "celery", *argv], directory, env)

    @property
    def log(self) -> str:
        return self.process.log.read_text()

    def wait_ready(self, times: int = 1) -> None:
        """Return when it has said *times* times that it is ready."""

        wait_until(lambda: self._ready_times() >= times or not self.process.running, timeout=30, pause=0.02)
        assert self.process.running, self.log

    def wait_log(self, text: str, timeout: float = 10.0) -> None:
        """Return when its log holds *text*."""
        try:
            wait_until(lambda: text in self.log, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    def wait_end(self, timeout: float = 20.0) -> int:
        """Return its exit code when it has ended by itself."""
        wait_until(lambda: not self.process.running, timeout)
        return self.process._child.returncode

    def kill(self) -> None:
        """End it and its children as the out-of-memory killer would."""
        self.process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, and none to its children."""
        os.kill(self.process.pid, number)

    def terminate(self) -> None:
        """AdmissionRequest for a warm shutdown and do not wait for it."""
        self.signal(signal.SIGTERM)

    def restart(self) -> None:
        """Start it again after :meth:`kill`."""
        before = self._ready_times()
        self.process.launch()
        self.wait_ready(before + 1)

    def _ready_times(self) -> int:
        return self.log.count(" ready.\n")


class Fleet:
    """
    Workers of one app, whoever publishes to them, and what they record.

    Args:
        directory: For their logs.
        redis_server: Holds the records; also broker, limits and results, unless a test says otherwise.
    """

    def __init__(self, directory: Path, redis_server: RedisServer) -> None:
        self.directory = directory
        self.server = redis_server
        self.records = Records(redis_server.client(db=3))
        base = redis_server.url.removesuffix("/0")
        self.config: dict[str, Any] = {
            "broker_url": f"{base}/0",
            "result_backend": f"{base}/2",
            "bucketflow_url": f"{base}/1",
            "worker_prefetch_multiplier": 4,
            "broker_connection_retry_on_startup": True,
            "worker_redirect_stdouts": False,
        }
        self.workers: list[Worker] = []
        self._app: Celery | None = None
        self._throttle: Throttle | None = None

    def configure(self, **config: Any) -> None:
        """Set Celery options by their names, and the throttle's as ``limits=`` or any ``bucketflow_...``."""
        if "limits" in config:
            config["bucketflow_limits"] = config.pop("limits")
        self.config |= config

    @property
    def app(self) -> Celery:
        """A publisher: an app with the workers' configuration that knows neither their tasks nor the throttle."""
        if self._app is None:
            self._app = Celery("publisher", set_as_current=False)
            self._app.config_from_object(self.config)
        return self._app

    def throttle(self) -> Throttle:
        """Return a throttle that looks at the same limits from here."""
        if self._throttle is None:
            app = Celery("observer", set_as_current=False)
            app.config_from_object(self.config)
            self._throttle = Throttle(app)
        return self._throttle

    def send(self, name: str, *args: Any, times: int = 1, **options: Any) -> list[Any]:
        """Publish the task *name*; the words of *options* are those of ``apply_async``."""
        signature = self.app.signature(f"workloads.{name}", args, app=self.app)
        return [signature.apply_async(**options) for _ in range(times)]

    def worker(
        self,
        pool: str = "threads",
        *args: str,
        concurrency: int = 2,
        queues: str | None = None,
        app: str = "workloads",
        wait: bool = True,
    ) -> Worker:
        """Start a worker; *queues* separated by commas."""
        name = f"w{len(self.workers)}"
        argv = [
            "-A",
            app,
            "worker",
            "-P",
            pool,
            "-c",
            str(concurrency),
            "-n",
            f"{name}@{self.directory.name}",
            "-l",
            "INFO",
            *ALONE,
        ]
        argv += ["-Q", queues] if queues else []
        worker = Worker(self.directory / name, [*argv, *args], self.environment(name))
        self.workers.append(worker)
        if wait:
            worker.wait_ready()
        return worker

    def start(self, number: int, *args: Any, **options: Any) -> list[Worker]:
        """Start *number* workers at once; the rest is for :meth:`worker`."""
        workers = [self.worker(*args, **options, wait=False) for _ in range(number)]
        for worker in workers:
            worker.wait_ready()
        return workers

    def module(self, name: str, source: str) -> str:
        """Write a module for :meth:`worker` to run; return its name."""
        (self.directory / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    def environment(self, name: str) -> dict[str, str]:
        """Return what makes a Python process one of the fleet."""
        path = [str(self.directory), str(HERE), *(entry for entry in sys.path if entry)]
        return {
            "PYTHONPATH": os.pathsep.join(path),
            "C_FORCE_ROOT": "1",  # whoever runs the tests, pickle is among them
            "WORKLOAD": json.dumps(self.config),
            "WORKLOAD_NODE": name,
            "WORKLOAD_RECORDS": self.server.url.removesuffix("/0") + "/3",
        }

    def parked(self, queue: str = "celery") -> int:
        """Return how many tasks of *queue* are parked."""
        backlog = self.throttle().backlog().get(queue)
        return backlog.count if backlog else 0

    def wait_parked(self, number: int, queue: str = "celery", timeout: float = 20.0) -> None:
        """Return once exactly *number* tasks of *queue* are parked."""
        try:
            wait_until(lambda: self.parked(queue) == number, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{self.parked(queue)} tasks are parked, not {number}") from None

    def inspect(self) -> Any:
        """Return what asks the running workers about themselves."""
        running = sum(worker.process.running for worker in self.workers)
        return self.app.control.inspect(timeout=5, limit=running)

    def stats(self) -> dict[str, int]:
        """Return the workers' counters, summed."""
        total: dict[str, int] = {}
        for answer in (self.inspect().stats() or {}).values():
            for counter, value in answer["throttle"].items():
                total[counter] = total.get(counter, 0) + value
        return total

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.process.stop()
        if self._app is not None:
            # A result that is collected after its server has ended looks for it for a long time.
            self._app.backend.result_consumer.stop()
            self._app.close()
        if self._throttle is not None:
            self._throttle.close()
        self.records.client.close()
