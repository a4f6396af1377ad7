"""
pytest-celery's nodes as processes of this machine.

pytest-celery takes its brokers, backends and workers to be containers. What it asks of one is little: a status, a log,
to be killed and to be started again. Here all tests share the servers, and only the worker is a test's own.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fleet import ALONE
from processes import HOST, Process, wait_until
from pytest_celery import CeleryWorkerContainer, RabbitMQContainer, RedisContainer
from servers import RabbitServer, RedisServer

__all__ = ["LocalRabbitMQ", "LocalRedis", "LocalWorker"]


class _Container:
    """A process behind the face of a Docker container."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.id = self.name = f"{name}{process.pid}"
        self.attrs: dict[str, object] = {}

    @property
    def status(self) -> str:
        return "running" if self._process.running else "exited"

    def reload(self) -> None:
        """Docker's client has to be told to look again."""

    def logs(self) -> bytes:
        return self._process.log.read_bytes()

    def kill(self, number: str | int | None = None) -> None:
        if number in (None, "SIGKILL", signal.SIGKILL):
            self._process.kill()
        else:
            self._process.terminate()

    def restart(self, timeout: float = 10) -> None:
        del timeout
        self._process.kill()
        self._process.launch()


class _Server:
    """What of a shared server differs from a container: its address, and that a test does not end it."""

    def __init__(self, server: RedisServer | RabbitServer, name: str) -> None:
        super().__init__(_Container(server.process, name))
        self.server = server

    @property
    def hostname(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def host_url(self) -> str:
        return self.server.url

    def ready(self) -> bool:
        self.server.wait_ready()
        return True


class LocalRedis(_Server, RedisContainer):
    """The Redis that tests share."""


class LocalRabbitMQ(_Server, RabbitMQContainer):
    """The RabbitMQ that tests share."""


class LocalWorker(CeleryWorkerContainer):
    """A worker of the test's own."""

    pool = "prefork"
    queue = "celery"

    @classmethod
    def command(cls, *args: str, **options: object) -> list[str]:
        return super().command("-P", cls.pool, "-c", "2", *ALONE, *args, **options)

    @classmethod
    def worker_queue(cls) -> str:
        return cls.queue

    @classmethod
    def launch(cls, command: Sequence[str], env: Mapping[str, str], content: Mapping[str, bytes], directory: Path):
        """Write the files that Docker would put into a volume, and start the worker among them."""
        for name, source in content.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(source)
        return cls(_Container(Process([sys.executable, "-m", *command], directory, env), "worker"))

    def ready(self) -> bool:
        wait_until(lambda: self.ready_prompt in self.logs() or self.status == "exited", timeout=30, pause=0.02)
        assert self.status == "running", self.logs()
        return True

    def teardown(self) -> None:
        self._container.kill()
