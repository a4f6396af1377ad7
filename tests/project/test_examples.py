"""Every example does what its docstring says, with the commands that stand there, on a real Redis."""

from __future__ import annotations

import ast
import importlib
import shlex
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import pytest
from processes import HOST, Process, wait_until

from bucketflow.algorithm.window import Start, worst_window
from bucketflow.limit import Limit

pytestmark = pytest.mark.usefixtures("redis_client")  # each begins with an empty server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PROGRAMS = {"python": [sys.executable], "celery": [sys.executable, "-m", "celery"]}


def commands(example, word):
    """Return the commands of an example's docstring that contain *word*, as they can be run here."""
    text = ast.get_docstring(ast.parse((EXAMPLES / f"{example}.py").read_text()))
    lines = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    found = [shlex.split(line) for line in lines if word in line]
    return [[*PROGRAMS[program], *arguments] for program, *arguments in found]


def environment(redis_server, **more):
    return {"PYTHONPATH": f"{EXAMPLES}:{ROOT}", "REDIS_URL": redis_server.url, **more}


def run(argv, directory, env):
    """Return what a command prints."""
    done = subprocess.run(argv, cwd=directory, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def worker_of(example, directory, env):
    """Run the worker that the docstring tells of."""
    (argv,) = commands(example, " worker")
    options = ["-c", "2", "--without-gossip", "--without-mingle", "-l", "INFO"]
    worker = Process([*argv, *options], directory / "worker", env)
    try:
        wait_until(lambda: "ready." in worker.log.read_text(), timeout=30)
        yield worker
    finally:
        worker.stop()


def test_standalone(tmp_path):
    (argv,) = commands("standalone", "standalone.py")
    text = run([argv[0], str(EXAMPLES / argv[1])], tmp_path, {"PYTHONPATH": str(ROOT)})
    assert "three at once: [True, True, True, False]" in text
    assert "no greeting for Edsger, retry in 0.5 s" in text
    assert "bob:   [True, True, False, False]" in text  # alice has taken three of five
    assert "took 0.2 s" in text


def test_plain_app(tmp_path, redis_server):
    env = environment(redis_server)
    (argv,) = commands("plain_app", "plain_app.py")
    with worker_of("plain_app", tmp_path, env):
        began = time.monotonic()
        lines = run([argv[0], str(EXAMPLES / argv[1])], tmp_path, env).splitlines()
    assert lines == [f"sent to user{number}@example.com" for number in range(15)]
    assert time.monotonic() - began >= 2.0  # 5 at once, 10 more at 5/s


class _Api(BaseHTTPRequestHandler):
    """Remembers who called when."""

    def do_GET(self):
        (customer,) = parse_qs(urlparse(self.path).query)["customer"]
        self.server.calls.append((time.monotonic(), customer))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def api():
    with ThreadingHTTPServer((HOST, 0), _Api) as server:
        server.calls = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_tenant_api_client(tmp_path, redis_server, api):
    env = environment(redis_server, API_URL=f"http://{HOST}:{api.server_port}/")
    (argv,) = commands("tenant_api_client", "tenant_api_client.py")
    with worker_of("tenant_api_client", tmp_path, env):
        text = run([argv[0], str(EXAMPLES / argv[1])], tmp_path, env)
    assert text == "41 tasks done\n"
    starts = {name: [Start(at, 1) for at, who in sorted(api.calls) if who == name] for name in ("acme", "brick")}
    assert {name: len(calls) for name, calls in starts.items()} == {"acme": 30, "brick": 13}
    # One bucket for both queues: with one each, 13 calls at once would be 3 over. A call may arrive 0.2 s late.
    assert worst_window(Limit(10, 5), starts["brick"]).over <= 5 * 0.2 + 0.5


def test_django_settings(tmp_path, redis_server):
    env = environment(redis_server)
    look = (
        "from django_settings import throttle; s = throttle.settings; print(s.url, s.limits.top.fill_rate, s.max_wait)"
    )
    assert run([sys.executable, "-c", look], tmp_path, env).split() == [redis_server.url, "100.0", "3600.0"]
    six = "from django_settings import remind; [r.get(timeout=20) for r in [remind.delay('acme', n) for n in range(6)]]"
    (argv,) = commands("django_settings", "python -c")
    with worker_of("django_settings", tmp_path, env):
        assert run(argv, tmp_path, env) == "reminded acme of invoice 1\n"
        began = time.monotonic()
        run([sys.executable, "-c", six], tmp_path, env)
    assert time.monotonic() - began >= 2.0  # 2 at once, 4 more at 2/s


@pytest.fixture
def publisher(monkeypatch, redis_server):
    """Yield the web service's module, imported as a web server would."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module("fastapi_publisher")
    del sys.modules["fastapi_publisher"]


def test_fastapi_publisher(tmp_path, redis_server, publisher):
    from fastapi.testclient import TestClient  # noqa: PLC0415 - optional

    client = TestClient(publisher.api)
    acme = {"X-Api-Key": "key-of-acme"}
    with worker_of("fastapi_publisher", tmp_path, environment(redis_server)):
        assert client.post("/thumbnails?image=cat.png", headers={"X-Api-Key": "nobody's"}).status_code == 401
        ids = [client.post(f"/thumbnails?image={n}.png", headers=acme).json()["id"] for n in range(8)]
        wait_until(lambda: client.get("/delay", headers=acme).json()["tenant"] > 0)
        assert client.get("/delay", headers={"X-Api-Key": "key-of-brick"}).json()["tenant"] == 0
        wait_until(lambda: client.get(f"/thumbnails/{ids[-1]}").json()["state"] == "SUCCESS", timeout=20)
        assert client.get(f"/thumbnails/{ids[0]}").json()["result"] == "thumbnail of 0.png"


def test_every_example_is_run_here():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
