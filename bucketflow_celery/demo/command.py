"""The demo from its first second to its last."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.console import Console

from bucketflow.errors import BucketflowError
from bucketflow_celery.demo.chart import draw
from bucketflow_celery.demo.fleet import WORKERS, Watch, start_workers
from bucketflow_celery.demo.interrupts import Interrupted, Interrupts
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import TASKS
from bucketflow_celery.demo.place import Place
from bucketflow_celery.demo.processes import DemoError, Programs
from bucketflow_celery.demo.records import Records
from bucketflow_celery.demo.report import report
from bucketflow_celery.demo.run import follow
from bucketflow_celery.demo.screen import Lines, Screen
from bucketflow_celery.demo.servers import find_server
from bucketflow_celery.demo.summary import summarise
from bucketflow_celery.demo.tasks import configure, peek
from bucketflow_celery.demo.workload import COLUMNS, DEFAULT, Order, WorkloadError, read

__all__ = ["run"]


#: Columns of a log.
WIDTH = 100


def run(argv: Sequence[str]) -> int:
    """
    Run the demo.

    Args:
        argv: Its arguments.

    Returns:
        0: every promise was kept. 1: one was broken, or something failed. 2: the workload cannot be sent.
        128 + n: signal n ended it.
    """
    options = _parser().parse_args(argv)
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=WIDTH)
    try:
        orders = read(options.workload)
        options.output.mkdir(parents=True, exist_ok=True)
        interrupts = Interrupts()
        with interrupts.handled():
            return _demonstrate(orders, options.output, console, interrupts)
    except (WorkloadError, DemoError, BucketflowError, RedisError, OperationalError, OSError) as error:
        errors.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2 if isinstance(error, WorkloadError) else 1
    except Interrupted as interrupted:
        errors.print("ended early; nothing was left behind")
        return 128 + interrupted.number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bucketflow_celery.demo",
        description="Real Celery workers obey a shared hierarchy of token buckets: queue, tenant, task.",
        epilog="It starts a server of its own; REDIS_URL in the environment names another.",
    )
    columns, tasks = ",".join(COLUMNS), " or ".join(TASKS)
    text = f"a CSV file with the columns {columns}; a task is {tasks} (default: the one that comes with the package)"
    parser.add_argument("workload", nargs="?", type=Path, default=DEFAULT, help=text)
    text = "where the chart goes (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help=text)
    return parser


def _demonstrate(orders: Sequence[Order], output: Path, console: Console, interrupts: Interrupts) -> int:
    ledger = _run_workers(orders, console, interrupts)
    summary = summarise(ledger)
    report(console, summary)
    path = output / "throttle.png"
    draw(ledger, summary, path)
    console.print(f"chart: {path.resolve()}", soft_wrap=True, markup=False, highlight=False)
    return 1 if summary.broken else 0


def _run_workers(orders: Sequence[Order], console: Console, interrupts: Interrupts) -> Ledger:
    with tempfile.TemporaryDirectory(prefix="bucketflow-demo-", ignore_cleanup_errors=True) as directory:
        programs = Programs(Path(directory), interrupts)
        place: Place | None = None
        try:
            console.print("starting a server and two workers ...", highlight=False)
            place = Place.new(find_server(os.environ, Path(directory), programs))
            return _run_orders(orders, place, programs, console)
        finally:
            with interrupts.held():
                programs.kill()
                if place is not None and os.environ.get("REDIS_URL"):
                    with suppress(RedisError):
                        place.clear()


def _run_orders(orders: Sequence[Order], place: Place, programs: Programs, console: Console) -> Ledger:
    records = Records(place)
    configure(place)
    start_workers(place, records, programs)
    ledger = Ledger(orders, time.monotonic())
    screen = Screen(console, ledger) if console.is_terminal else Lines(console, ledger)
    watch = Watch()
    watch.start()

    def show(now: float) -> None:
        programs.check()
        screen.show(now, peek(ledger.paths), watch.counters)

    try:
        with screen.shown():
            follow(ledger, records, show)
    finally:
        watch.end()
    programs.retire(*WORKERS)
    records.read_into(ledger)
    records.close()
    return ledger
