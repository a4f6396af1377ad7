"""Scenarios on the demo's workers: start the workers, send the orders of one scenario after another, follow them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from celery.utils import uuid
from rich.console import Console

import bucketflow_celery
from bucketflow_celery.demo.app import app
from bucketflow_celery.demo.environment import Environment
from bucketflow_celery.demo.limits import MODES, QUEUE, queue_of
from bucketflow_celery.demo.processes import DemoError, Processes, wait_until
from bucketflow_celery.demo.run_log import Recorder, RunLog
from bucketflow_celery.demo.screen import LogScreen, ScenarioView, TerminalScreen
from bucketflow_celery.demo.workload import Order

__all__ = ["ScenarioRunner", "start_workers"]

WORKERS = ("worker 1", "worker 2")

#: Pool processes of each worker.
CONCURRENCY = 4

#: Seconds that the workers have to become ready.
READY_TIMEOUT = 40.0

#: Seconds between two polls of the workers' records.
POLL_INTERVAL = 0.2

#: Seconds without a start after which the tasks that still wait count as lost.
STALL_TIMEOUT = 15.0

#: Seconds between two requests for the workers' counters, and seconds to wait for their replies.
STATS_INTERVAL, STATS_TIMEOUT = 0.8, 1.0


def start_workers(environment: Environment, processes: Processes) -> None:
    """
    Start the workers and wait until they are ready.

    Raises:
        DemoError: A worker ended, or they are not ready after :data:`READY_TIMEOUT`.
    """
    source = str(Path(bucketflow_celery.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    queues = ",".join((QUEUE, *MODES))
    for number, name in enumerate(WORKERS, start=1):
        argv = [sys.executable, "-m", "celery", "-A", "bucketflow_celery.demo.app", "worker", "-P", "prefork"]
        argv += ["-c", str(CONCURRENCY), "-n", f"worker{number}@{environment.namespace}", "-Q", queues]
        argv += ["-l", "WARNING", "--without-gossip", "--without-mingle", "--without-heartbeat"]
        processes.start(name, argv, {**environment.variables(), "PYTHONPATH": paths})
    with closing(Recorder(environment)) as recorder:

        def ready() -> bool:
            processes.check()
            return recorder.ready_workers >= len(WORKERS)

        if not wait_until(ready, READY_TIMEOUT, pause=0.05):
            raise DemoError(f"the workers are not ready after {READY_TIMEOUT:g} s:\n{processes.tail(WORKERS[0])}")


class ScenarioRunner:
    """
    Runs scenarios one after another on the same workers.

    Args:
        console: Where the scenarios are shown.
        environment: Where the workers record.
        processes: The workers, which are ready.
    """

    def __init__(self, console: Console, environment: Environment, processes: Processes) -> None:
        self._console = console
        self._environment = environment
        self._processes = processes
        self._runs: list[tuple[RunLog, Recorder]] = []

    def run(self, orders: Sequence[Order], view_of: Callable[[RunLog], ScenarioView]) -> RunLog:
        """Send *orders* and show the run with ``view_of(log)``; return its log once no task waits any more."""
        log, recorder = RunLog(orders, time.monotonic()), Recorder(self._environment)
        self._runs.append((log, recorder))
        kind = TerminalScreen if self._console.is_terminal else LogScreen
        screen = kind(self._console, log, view_of(log))
        poller = StatsPoller()
        poller.start()

        def show(now: float) -> None:
            self._processes.check()
            screen.show(now, poller.counters)

        try:
            with screen.shown():
                _follow(log, recorder, show)
        finally:
            poller.stop()
        return log

    def finish(self) -> None:
        """Stop the workers, and add what they have recorded since their scenario to its log."""
        self._processes.terminate(*WORKERS)
        for log, recorder in self._runs:
            recorder.read_into(log)
            recorder.close()


class StatsPoller(threading.Thread):
    """Thread that polls the workers' counters, as ``celery inspect stats`` does."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._stopped = threading.Event()
        self._counters: dict[str, dict[str, int]] = {}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """The last ``throttle.stats()`` of each worker, by worker name."""
        return self._counters

    def run(self) -> None:
        """Poll until stopped."""
        while not self._stopped.wait(STATS_INTERVAL):
            try:
                replies: dict[str, Any] = app.control.inspect(timeout=STATS_TIMEOUT, limit=len(WORKERS)).stats() or {}
            except Exception:  # noqa: BLE001, S112 - the counters are optional; reading the records reports an outage
                continue
            found = {name.partition("@")[0]: reply["throttle"] for name, reply in replies.items()}
            self._counters = {**self._counters, **found}

    def stop(self) -> None:
        """Stop polling; wait for a request under way."""
        self._stopped.set()
        self.join(2 * STATS_TIMEOUT)


def _follow(log: RunLog, recorder: Recorder, show: Callable[[float], None]) -> None:
    """
    Send each order of *log* at its second and record the starts, until all tasks have started or none does.

    Args:
        log: A log of which nothing is sent yet.
        recorder: The workers' records.
        show: Called after each poll with the seconds since the run began.
    """
    progress_at, before = 0.0, (-1, -1)
    while not log.complete:
        now = time.monotonic() - log.began_at
        _send_due(log, now)
        recorder.read_into(log)
        state = (len(log.sent), len(log.starts))
        if state != before:
            progress_at, before = now, state
        elif len(log.sent) == len(log.orders) and now - progress_at > STALL_TIMEOUT:
            break
        show(now)
        time.sleep(POLL_INTERVAL)


def _send_due(log: RunLog, now: float) -> None:
    for order in log.orders[len(log.sent) :]:
        if order.second > now:
            break
        task_id = uuid()
        # Logged before it is published: read_into() drops the start of a task that the log does not know.
        log.sent[task_id] = (time.monotonic() - log.began_at, order)
        task = app.tasks[order.task]
        task.apply_async((order.tenant, order.cost), task_id=task_id, queue=queue_of(order.task))
