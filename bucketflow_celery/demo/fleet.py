"""The demo's workers: started, watched, ended."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import bucketflow_celery
from bucketflow_celery.demo.limits import QUEUE, SIDES
from bucketflow_celery.demo.place import Place
from bucketflow_celery.demo.processes import DemoError, Programs
from bucketflow_celery.demo.records import Records
from bucketflow_celery.demo.tasks import app

__all__ = ["SLOTS", "WORKERS", "Watch", "start_workers"]

WORKERS = ("worker 1", "worker 2")

#: Tasks a worker runs at once.
SLOTS = 4

#: Seconds the workers have to get ready.
PATIENCE = 40.0


def start_workers(place: Place, programs: Programs) -> None:
    """
    Start the workers and wait until they are ready.

    Raises:
        DemoError: They do not get ready.
    """
    source = str(Path(bucketflow_celery.__file__).parent.parent)
    paths = os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")]))
    queues = ",".join((QUEUE, *SIDES))
    for number, name in enumerate(WORKERS, start=1):
        argv = [sys.executable, "-m", "celery", "-A", "bucketflow_celery.demo.tasks", "worker", "-P", "prefork"]
        argv += ["-c", str(SLOTS), "-n", f"worker{number}@{place.namespace}", "-Q", queues, "-l", "WARNING"]
        argv += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        programs.start(name, argv, {**place.environment(), "PYTHONPATH": paths})
    records = Records(place)
    deadline = time.monotonic() + PATIENCE
    while records.workers < len(WORKERS):
        programs.check()
        if time.monotonic() > deadline:
            raise DemoError(f"the workers are not ready after {PATIENCE:g} s:\n{programs.tail(WORKERS[0])}")
        time.sleep(0.05)
    records.close()


class Watch(threading.Thread):
    """Asks the workers for their counters, as ``celery inspect stats`` does, beside what the demo does meanwhile."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._ended = threading.Event()
        self._counters: dict[str, dict[str, int]] = {}

    @property
    def counters(self) -> dict[str, dict[str, int]]:
        """What each worker last said: ``throttle.stats()`` by the worker's name."""
        return self._counters

    def run(self) -> None:
        """AdmissionRequest once a second."""
        while not self._ended.wait(0.8):
            try:
                replies: dict[str, Any] = app.control.inspect(timeout=1.0, limit=len(WORKERS)).stats() or {}
            except Exception:  # noqa: BLE001, S112 - the counters are worth no failure; who reads the records sees it
                continue
            found = {name.partition("@")[0]: reply["throttle"] for name, reply in replies.items()}
            self._counters = {**self._counters, **found}

    def end(self) -> None:
        """AdmissionRequest no more."""
        self._ended.set()
        self.join(2.0)
