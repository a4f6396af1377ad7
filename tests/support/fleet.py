"""Real workers as local processes: one fleet for each test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from celery import Celery
from fork_server import ForkedWorker
from processes import Process, wait_until
from records import Records
from servers import RedisServer

from bucketflow_celery import Throttle

__all__ = ["CeleryProcess", "Fleet", "Worker"]

HERE = Path(__file__).parent
#: Without the messages that workers exchange: they are not tested here and slow down the start.
ALONE = ("--without-gossip", "--without-mingle", "--without-heartbeat")


class CeleryProcess(Process):
    """A process that runs ``python -m celery``, started by the fork server if its pool allows that."""

    def __init__(self, argv: Sequence[str], directory: Path, env: Mapping[str, str]) -> None:
        super().__init__([sys.executable, "-m", "celery", *argv], directory, env)

    def launch(self) -> None:
        if {"gevent", "eventlet"} & {*self.argv}:  # they patch the standard library before Celery is imported
            super().launch()
        else:
            self._child = ForkedWorker(self.argv[3:], self.directory, self._env, self.log)


class Worker:
    """One ``celery worker``, which runs until :meth:`kill`, :meth:`terminate` or the end of the test."""

    def __init__(self, directory: Path, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.process = CeleryProcess(argv, directory, env)

    @property
    def log(self) -> str:
        return self.process.log.read_text()

    def wait_ready(self, times: int = 1) -> None:
        """Return once the worker has logged *times* times that it is ready."""
        wait_until(lambda: self._ready_times() >= times or not self.process.running, timeout=30, pause=0.02)
        assert self.process.running, self.log

    def wait_log(self, text: str, timeout: float = 10.0) -> None:
        """Return once the log contains *text*."""
        try:
            wait_until(lambda: text in self.log, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in the log:\n{self.log}") from None

    # 40 s: a pool process of Celery that has a result in flight at a warm shutdown waits up to 30 s before it exits.
    def wait_end(self, timeout: float = 40.0) -> int:
        """Wait until the worker exits, and return the exit code."""
        wait_until(lambda: not self.process.running, timeout)
        return self.process._child.returncode

    def kill(self) -> None:
        """Kill the worker and its children with SIGKILL, as the out-of-memory killer does."""
        self.process.kill()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the worker, and none to its children."""
        os.kill(self.process.pid, number)

    def terminate(self) -> None:
        """Request a warm shutdown and do not wait for it."""
        self.signal(signal.SIGTERM)

    def restart(self) -> None:
        """Start the worker again after :meth:`kill`."""
        before = self._ready_times()
        self.process.launch()
        self.wait_ready(before + 1)

    def _ready_times(self) -> int:
        return self.log.count(" ready.\n")


class Fleet:
    """
    Workers of one app, a publisher, and the records that the workers write.

    Args:
        directory: Directory of the logs and modules.
        redis_server: Server of the records, and by default of the broker, the limits and the results.
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
        """Set options of Celery, and of the throttle as ``bucketflow_...`` or ``limits``."""
        if "limits" in config:
            config["bucketflow_limits"] = config.pop("limits")
        self.config |= config

    @property
    def app(self) -> Celery:
        """The publisher: an app with the workers' configuration, without their tasks and without a throttle."""
        if self._app is None:
            self._app = Celery("publisher", set_as_current=False)
            self._app.config_from_object(self.config)
        return self._app

    def throttle(self) -> Throttle:
        """Return a throttle of this process with the same limits."""
        if self._throttle is None:
            app = Celery("observer", set_as_current=False)
            app.config_from_object(self.config)
            self._throttle = Throttle(app)
        return self._throttle

    def send(self, name: str, *args: Any, times: int = 1, **options: Any) -> list[Any]:
        """Publish the task *name* *times* times, with *options* of ``apply_async``."""
        signature = self.app.signature(f"workloads.{name}", args, app=self.app)
        return [signature.apply_async(**options) for _ in range(times)]

    def publish(self, *code: str) -> None:
        """Run lines of *code* in a process of their own: a publisher that has the workers' tasks and throttle."""
        env = {**self.environment("publisher"), "PATH": ""}
        source = "\n".join(["from workloads import *", *code])
        subprocess.run([sys.executable, "-c", source], env=env, check=True, timeout=30)

    def worker(
        self,
        pool: str = "threads",
        *args: str,
        concurrency: int = 2,
        queues: str | None = None,
        app: str = "workloads",
        wait: bool = True,
    ) -> Worker:
        """Start a worker of *queues*, which are separated by commas."""
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
        """Start *number* workers at once, with the arguments of :meth:`worker`."""
        workers = [self.worker(*args, **options, wait=False) for _ in range(number)]
        for worker in workers:
            worker.wait_ready()
        return workers

    def module(self, name: str, source: str) -> str:
        """Write a module that :meth:`worker` can run, and return its name."""
        (self.directory / f"{name}.py").write_text(textwrap.dedent(source))
        return name

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a process of the fleet."""
        path = [str(self.directory), str(HERE), *(entry for entry in sys.path if entry)]
        return {
            "PYTHONPATH": os.pathsep.join(path),
            "C_FORCE_ROOT": "1",  # some tests use pickle, which Celery refuses to run as root
            "WORKLOAD": json.dumps(self.config),
            "WORKLOAD_NODE": name,
            "WORKLOAD_RECORDS": self.server.url.removesuffix("/0") + "/3",
        }

    def parked(self, queue: str = "celery") -> int:
        """Return the number of parked tasks of *queue*."""
        backlog = self.throttle().backlog().get(queue)
        return backlog.count if backlog else 0

    def wait_parked(self, number: int, queue: str = "celery", timeout: float = 20.0) -> None:
        """Return once exactly *number* tasks of *queue* are parked."""
        try:
            wait_until(lambda: self.parked(queue) == number, timeout, pause=0.02)
        except TimeoutError:
            raise AssertionError(f"{self.parked(queue)} tasks are parked, not {number}") from None

    def inspect(self) -> Any:
        """Return Celery's ``inspect`` interface to the running workers."""
        running = sum(worker.process.running for worker in self.workers)
        return self.app.control.inspect(timeout=5, limit=running)

    def stats(self) -> dict[str, int]:
        """Return the sums of the workers' counters."""
        total: Counter[str] = Counter()
        for answer in (self.inspect().stats() or {}).values():
            counters = answer["throttle"]
            total.update(counters.pop("waiting_by_level"))  # "tenant": tasks that wait for their tenants
            total.update(counters)
        return total

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.process.stop()
        if self._app is not None:
            # A result consumer that is left running tries for a long time to reach a server that has ended.
            self._app.backend.result_consumer.stop()
            self._app.close()
        if self._throttle is not None:
            self._throttle.close()
        self.records.client.close()
