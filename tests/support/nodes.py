"""
Nodes of pytest-celery as local processes.

pytest-celery expects containers as brokers, backends and workers. It needs four operations of them: status, logs, kill
and restart. All tests share the servers here; each test has a worker of its own.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from fleet import ALONE, CeleryProcess
from processes import HOST, Process, wait_until
from pytest_celery import CeleryWorkerContainer, RabbitMQContainer, RedisContainer
from servers import RabbitServer, RedisServer

__all__ = ["LocalRabbitMQ", "LocalRedis", "LocalWorker"]


class _Container:
    """Adapter of a process to the interface of a Docker container."""

    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.id = self.name = f"{name}{process.pid}"
        self.attrs: dict[str, object] = {}

    @property
    def status(self) -> str:
        return "running" if self._process.running else "exited"

    def reload(self) -> None:
        """Do nothing: the status of a process is always current."""

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
    """A server that tests share: it has its own address, and a test does not stop it."""

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
    """The shared Redis."""


class LocalRabbitMQ(_Server, RabbitMQContainer):
    """The shared RabbitMQ."""


class LocalWorker(CeleryWorkerContainer):
    """The worker of one test."""

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
        """Write the files that Docker would mount as a volume, and start the worker in their directory."""
        for name, source in content.items():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(source)
        return cls(_Container(CeleryProcess(command[1:], directory, env), "worker"))

    def ready(self) -> bool:
        wait_until(lambda: self.ready_prompt in self.logs() or self.status == "exited", timeout=30, pause=0.02)
        assert self.status == "running", self.logs()
        return True

    def teardown(self) -> None:
        self._container.kill()
