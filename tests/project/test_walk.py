"""The way of one message through a worker stays short enough to be followed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_parked_message_passes_few_functions_in_few_files(redis_server):
    del redis_server  # only for its check that there is a server
    walk = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "walk.py"), "--verbose"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert walk.returncode == 0, walk.stderr
    hops, files = map(int, re.search(r"^sum +(\d+) +(\d+)$", walk.stdout, re.MULTILINE).groups())
    (admission,) = map(int, re.search(r"^admission alone .*: (\d+) hops$", walk.stdout, re.MULTILINE).groups())
    assert (hops <= 160, files <= 32, admission <= 45) == (True, True, True), walk.stdout
