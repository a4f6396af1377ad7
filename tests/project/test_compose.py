"""docker-compose.yml without Docker: its commands, in its directories, with its environment, as local processes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import Process, wait_until

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker")]
OURS = [*WORKERS, "publisher"]

each_of_ours = pytest.mark.parametrize("name", OURS)


def directory_of(name):
    """Return where a service works, here: the image holds this tree under /app."""
    return ROOT / Path(SERVICES[name]["working_dir"]).relative_to("/app")


def argv_of(name):
    """Return a service's command, with the programs of this interpreter's environment."""
    program, *arguments = shlex.split(SERVICES[name]["command"])
    module = [] if program == "python" else ["-m", program]
    return [sys.executable, *module, *arguments]


def environment_of(name, addresses):
    """Return a service's environment; *addresses* maps a service's name and port to where it is here."""
    env = {**os.environ, "PYTHONPATH": f"{directory_of(name)}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}
    for variable, url in SERVICES[name]["environment"].items():
        env[variable] = re.sub("|".join(map(re.escape, addresses)), lambda match: addresses[match[0]], url)
    return env


def test_it_has_two_workers_a_publisher_and_their_servers():
    assert set(SERVICES) == {"redis", "rabbitmq", "worker-1", "worker-2", "publisher"}


@each_of_ours
def test_every_host_in_the_environment_is_a_service(name):
    hosts = {re.search(r"(?:@|://)([\w-]+):\d+", url)[1] for url in SERVICES[name]["environment"].values()}
    assert hosts == {"redis", "rabbitmq"}


@each_of_ours
def test_everyone_waits_until_the_servers_are_healthy(name):
    for server in ("redis", "rabbitmq"):
        assert SERVICES[name]["depends_on"][server] == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[server]


@each_of_ours
def test_the_image_holds_what_the_service_runs(name):
    dockerfile = (ROOT / SERVICES[name]["build"] / "Dockerfile").read_text()
    assert "WORKDIR /app\nCOPY . ." in dockerfile
    assert "'.[celery]'" in dockerfile
    assert directory_of(name).is_dir()


def test_its_commands_run_every_task_on_both_workers(redis_server, redis_client, rabbit_server, tmp_path):
    assert redis_client.dbsize() == 0
    addresses = {"redis:6379": redis_server.url.split("/")[2], "rabbitmq:5672": rabbit_server.url.split("@")[1][:-2]}
    workers = []
    try:
        workers.extend(Process(argv_of(name), tmp_path / name, environment_of(name, addresses)) for name in WORKERS)
        for worker in workers:
            wait_until(lambda log=worker.log: " ready.\n" in log.read_text(), timeout=30, pause=0.1)
        published = subprocess.run(
            argv_of("publisher"),
            cwd=directory_of("publisher"),
            env=environment_of("publisher", addresses),
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
    finally:
        for worker in workers:
            worker.stop()
    assert published.returncode == 0, published.stderr
    sent = published.stdout.splitlines()
    assert sent == [f"sent to user{number}@example.com" for number in range(15)]
    done = [re.findall(r"send_email\[(.+)\] succeeded", worker.log.read_text()) for worker in workers]
    assert all(done)
    assert len(done[0] + done[1]) == len({*done[0], *done[1]}) == 15
