"""
Counts the way of one message through a real worker: how many functions, in how many files, until it is settled.

usage: python tools/walk.py [--verbose]

A prefork worker with ``on_limit="park"`` on a real Redis runs five tasks under a limit that parks each of them. A
profile function records every call of a function of the two packages. The first two tasks warm up caches and
connections. The shortest way of the others is counted, in stages: a busy machine makes some of them longer.

Counted is each function once a stage. Left out are what an idle worker calls, too (its rounds, timers and sweeps),
unless it carries a call to Redis; the thread of the lease; generated functions; and what runs once a process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from celery import Celery, signals
from redis import Redis
from redis.exceptions import RedisError

from bucketflow_celery import Limit, Throttle
from bucketflow_celery.demo.processes import HOST, free_port, wait_until

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("/bucketflow/", "/bucketflow_celery/")
#: Seconds that the worker is left idle before the first task.
IDLE = 7.0

#: The stages of a message, each with the function whose call begins it; the last one ends the walk.
STAGES = (
    ("received", "worker/bootstep.py", "_on_request"),
    ("asked", "store/redis_store.py", "admit"),
    ("refused", "admission/decisions.py", "apply"),
    ("parked", "store/redis_backlog.py", "park"),
    ("dispatched", "worker/celery_worker.py", "acknowledge"),
    ("settled", "worker/slots.py", "start"),
    ("", "parking/in_flight_tasks.py", "confirm"),
)
#: The last instruction of a frame that has just started is at most this one, in any Python.
_FIRST_INSTRUCTIONS = 4
#: Where calls to Redis go: these files count although an idle worker polls, too.
TRANSPORT = ("bucketflow/redis_client/", "store/redis_store.py", "store/redis_backlog.py", "worker/redis_event_loop.py")
#: The timer in these files. It carries no call.
TIMER = "_on_timer"
TASKS, WARM_UP_TASKS = 5, 2


class Call(NamedTuple):
    """A call of one of our functions: its file, below the repository, and its name."""

    file: str
    function: str


class Stage(NamedTuple):
    """What one stage came to: its calls in order, each function once."""

    name: str
    calls: list[Call]


def counted(calls: list[Call]) -> list[Stage]:
    """Return the stages of the message in *calls* that passes the fewest functions."""
    starts = [index for index, call in enumerate(calls) if _begins(call, 0)]
    idle = {
        call
        for call in calls[: starts[0]]
        if call.function == TIMER or not any(part in call.file for part in TRANSPORT)
    }
    ways = [_stages(calls, start, idle) for start in starts[WARM_UP_TASKS:]]
    return min(ways, key=lambda stages: sum(len(stage.calls) for stage in stages))


def _stages(calls: list[Call], start: int, idle: set[Call]) -> list[Stage]:
    bounds = [start]
    for number in range(1, len(STAGES)):
        bounds.append(next(at for at in range(bounds[-1], len(calls)) if _begins(calls[at], number)))
    bounds[-1] += 1
    return [
        Stage(name, list(dict.fromkeys(call for call in calls[begin:end] if call not in idle)))
        for (name, _, _), begin, end in zip(STAGES, bounds, bounds[1:], strict=False)
    ]


def _begins(call: Call, number: int) -> bool:
    _, file, function = STAGES[number]
    return call.function == function and call.file.endswith(file)


def report(stages: list[Stage], *, verbose: bool) -> None:
    """Print the counts of *stages*."""
    print(f"{'stage':12} {'hops':>5} {'files':>6}")
    for stage in stages:
        print(f"{stage.name:12} {len(stage.calls):5} {len({call.file for call in stage.calls}):6}")
        if verbose:
            print("   ", *[f"{Path(call.file).stem}.{call.function}" for call in stage.calls])
    calls = [call for stage in stages for call in stage.calls]
    admission = sum(len(stage.calls) for stage in stages[:2])
    print(f"{'sum':12} {len(calls):5} {len({call.file for call in calls}):6}")
    print(f"admission alone (received, asked): {admission} hops")


def run(directory: Path) -> list[Call]:
    """Run server, worker and tasks in *directory*; return the calls that the worker recorded."""
    port, trace = free_port(), directory / "trace.json"
    url = f"redis://{HOST}:{port}"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "WALK_URL": url, "WALK_TRACE": str(trace)}
    environment["C_FORCE_ROOT"] = "1"
    server = subprocess.Popen(
        [
            os.environ.get("REDIS_SERVER", "redis-server"),
            "--port",
            str(port),
            "--bind",
            HOST,
            "--save",
            "",
            "--dir",
            str(directory),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: _answers(Redis.from_url(url)), timeout=10)
        options = ["-P", "prefork", "-c", "1", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "walk", "worker", "-l", "WARNING", *options], env=environment
        )
        try:
            subprocess.run([sys.executable, "-c", "import walk; walk.send()"], env=environment, check=True, timeout=60)
        finally:
            worker.terminate()
            worker.wait(30)
    finally:
        server.terminate()
        server.wait(10)
    return [Call(*call) for call in json.loads(trace.read_text())]


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def make_app(url: str, trace: str) -> Any:
    """Return a Celery app whose worker writes the calls of our functions to *trace* when it shuts down."""
    app = Celery("walk", broker=f"{url}/0", backend=f"{url}/0", set_as_current=True)
    app.conf.broker_connection_retry_on_startup = True
    Throttle(app, url=f"{url}/1", on_limit="park", limits={"queues": {"celery": Limit(1, 0.5)}})
    app.task(name="walk.work")(_work)
    calls: list[Call] = []

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        # A generator calls again at each resumption: only where its frame starts is it a call of its function.
        if event == "call" and frame.f_lasti <= _FIRST_INSTRUCTIONS and not frame.f_code.co_name.startswith("<"):
            calls.extend(_ours(frame.f_code.co_filename, frame.f_code.co_name))

    @signals.worker_ready.connect(weak=False)
    def _start(**_: object) -> None:
        sys.setprofile(profile)

    @signals.worker_shutdown.connect(weak=False)
    def _stop(**_: object) -> None:
        sys.setprofile(None)
        Path(trace).write_text(json.dumps(calls))

    threading.setprofile(lambda *arguments: None if threading.current_thread().daemon else profile(*arguments))
    return app


def _ours(path: str, function: str) -> Iterator[Call]:
    for package in PACKAGES:
        at = path.rfind(package)
        if at >= 0:
            yield Call(path[at + 1 :], function)
            return


def _work(number: int) -> int:
    return number


def send() -> None:
    """Send the tasks, one after the other."""
    time.sleep(4 + IDLE)
    for number in range(TASKS):
        app.send_task("walk.work", (number,)).get(timeout=20)
        time.sleep(1.0)


def _from_environment(environment: Mapping[str, str]) -> Any:
    return make_app(environment["WALK_URL"], environment["WALK_TRACE"]) if "WALK_URL" in environment else None


app = _from_environment(os.environ)

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        report(counted(run(Path(directory))), verbose="--verbose" in sys.argv)
