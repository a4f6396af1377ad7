"""The demo from its first second to its last."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.console import Console

from bucketflow.errors import BucketflowError
from bucketflow_celery.demo.chart import draw
from bucketflow_celery.demo.fleet import start_workers
from bucketflow_celery.demo.interrupts import Interrupted, Interrupts
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.level_rows import LevelRows
from bucketflow_celery.demo.limits import TASKS
from bucketflow_celery.demo.place import Place
from bucketflow_celery.demo.processes import DemoError, Programs
from bucketflow_celery.demo.report import report_levels, report_sides
from bucketflow_celery.demo.servers import find_server
from bucketflow_celery.demo.side_rows import SideRows
from bucketflow_celery.demo.sides import compare, rival_orders
from bucketflow_celery.demo.stage import Stage
from bucketflow_celery.demo.summary import summarise
from bucketflow_celery.demo.tasks import configure
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
        description="Real Celery workers obey a shared hierarchy of token buckets: queue, tenant, task. "
        "Then a noisy tenant and a quiet one share a queue, once with on_limit=retry and once with park.",
        epilog="It starts a server of its own; REDIS_URL in the environment names another.",
    )
    columns, tasks = ",".join(COLUMNS), " or ".join(TASKS)
    text = f"what the first act sends: a CSV file with the columns {columns}; a task is {tasks}"
    text += " (default: the one that comes with the package)"
    parser.add_argument("workload", nargs="?", type=Path, default=DEFAULT, help=text)
    text = "where the chart goes (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help=text)
    return parser


def _demonstrate(orders: Sequence[Order], output: Path, console: Console, interrupts: Interrupts) -> int:
    levels, rivals = _run_workers(orders, console, interrupts)
    summary, sides = summarise(levels), compare(rivals)
    broken = report_levels(console, summary) + report_sides(console, summarise(rivals), sides)
    path = output / "throttle.png"
    draw(levels, summary, sides, path)
    console.print(f"chart: {path.resolve()}", soft_wrap=True, markup=False, highlight=False)
    return 1 if broken else 0


def _run_workers(orders: Sequence[Order], console: Console, interrupts: Interrupts) -> tuple[Ledger, Ledger]:
    with tempfile.TemporaryDirectory(prefix="bucketflow-demo-", ignore_cleanup_errors=True) as directory:
        programs = Programs(Path(directory), interrupts)
        place: Place | None = None
        try:
            console.print("starting a server and two workers ...", highlight=False)
            place = Place.new(find_server(os.environ, Path(directory), programs))
            return _run_acts(orders, place, programs, console)
        finally:
            with interrupts.held():
                programs.kill()
                if place is not None and os.environ.get("REDIS_URL"):
                    with suppress(RedisError):
                        place.clear()


def _run_acts(orders: Sequence[Order], place: Place, programs: Programs, console: Console) -> tuple[Ledger, Ledger]:
    configure(place)
    start_workers(place, programs)
    stage = Stage(console, place, programs)
    levels = stage.play(orders, LevelRows)
    console.print("second act: one noisy tenant, retry against park", highlight=False)
    rivals = stage.play(rival_orders(), SideRows)
    stage.clear()
    return levels, rivals
