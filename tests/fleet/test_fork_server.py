"""A worker that the fork server starts cannot be told from one that a new interpreter runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import CeleryProcess
from processes import Process, wait_until

#: An app that reports the state of its process when it is imported, and exits.
PROBE = """
import atexit, json, os, signal, sys, threading
import celery._state

streams = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}
facts = {
    "argv": sys.argv,
    "path": sys.path,
    "main": [sys.modules["__main__"].__name__, sys.modules["__main__"].__spec__.name],
    "environment": {name: value for name, value in os.environ.items() if name != "PWD"},
    "directory": os.getcwd(),
    "session": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "streams": {name: [s.encoding, s.errors, s.line_buffering, s.isatty()] for name, s in streams.items()},
    "devnull": os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev,
    "descriptors": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],
    "signals": {n.name: str(signal.getsignal(n)) for n in signal.valid_signals() if isinstance(n, signal.Signals)},
    "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "wakeup": signal.set_wakeup_fd(-1),
    "threads": [thread.name for thread in threading.enumerate()],
    "app": celery._state.default_app is None,
    "mine": sorted({"pytest", "hypothesis", "processes", "fleet", "workloads", "django"} & set(sys.modules)),
}
atexit.register(print, "exit handlers run")
print("facts", json.dumps(facts))
sys.exit(7)
"""


def forked(*args):
    return CeleryProcess(*args)


def executed(argv, *args):
    return Process([sys.executable, "-m", "celery", *argv], *args)


def probe(directory, start, source=PROBE):
    """Run ``celery -A probe worker`` with *source* as the module ``probe``; return the process."""
    directory.mkdir(exist_ok=True)
    (directory / "probe.py").write_text(source)
    env = {"PYTHONPATH": os.pathsep.join([str(directory), *filter(None, sys.path)]), "ONLY_HERE": "1"}
    return start(["-A", "probe", "worker", "-P", "threads"], directory, env)


def facts_of(directory, start):
    process = probe(directory, start)
    wait_until(lambda: not process.running, timeout=60)
    (*_, facts) = re.findall("^facts (.+)$", process.log.read_text(), re.MULTILINE)
    return json.loads(facts)


def test_a_forked_worker_sees_what_an_executed_one_sees(tmp_path):
    assert facts_of(tmp_path, forked) == facts_of(tmp_path, executed)


@pytest.mark.parametrize("start", [forked, executed])
def test_the_exit_code_is_that_of_the_main_program_after_its_exit_handlers(tmp_path, start):
    process = probe(tmp_path, start)
    wait_until(lambda: not process.running, timeout=60)
    assert process._child.returncode == 7
    assert process.log.read_text().endswith("exit handlers run\n")


@pytest.mark.parametrize("start", [forked, executed])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_reported_as_a_negative_exit_code(tmp_path, start, number):
    process = probe(tmp_path, start, "import time\nprint('up', flush=True)\ntime.sleep(60)")
    wait_until(lambda: "up" in process.log.read_text(), timeout=60)
    os.kill(process.pid, number)
    assert process._child.wait(10) == -number


def test_a_worker_that_has_exited_can_be_signalled_until_its_exit_code_is_read(tmp_path):
    process = probe(tmp_path, forked, "import os\nos._exit(3)")
    wait_until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split(") ")[1].startswith("Z"), timeout=60)
    os.kill(process.pid, signal.SIGTERM)
    assert process._child.wait(10) == 3
    wait_until(lambda: not Path(f"/proc/{process.pid}").exists())


def test_no_worker_outlives_the_process_that_started_it(tmp_path):
    source = f"""
import os, signal, sys, time
from pathlib import Path
from fleet import CeleryProcess
from processes import wait_until
directory = Path({str(tmp_path)!r})
worker = CeleryProcess(["-A", "probe", "worker"], directory, {{}})
wait_until(lambda: worker.log.read_text().count("up ") == 2, timeout=60)
os.kill(os.getpid(), signal.SIGKILL)
"""
    (tmp_path / "probe.py").write_text(
        "import os, time\nchild = os.fork()\nos.write(1, b'up %d\\n' % os.getpid())\ntime.sleep(60)"
    )
    subprocess.run(
        [sys.executable, "-c", source], check=False, timeout=90,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])},
    )  # fmt: skip
    pids = [line.split()[1] for line in (tmp_path / "log").read_text().splitlines() if line.startswith("up ")]
    assert len(pids) == 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
