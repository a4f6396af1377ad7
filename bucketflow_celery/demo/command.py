"""The demo as a command: options, the two scenarios, the report, the chart and the clean-up."""

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
from bucketflow_celery.demo.analysis import summarise
from bucketflow_celery.demo.app import configure
from bucketflow_celery.demo.comparison import FULL, QUICK, Comparison, Load, comparison_orders
from bucketflow_celery.demo.environment import Environment
from bucketflow_celery.demo.limits import TASKS
from bucketflow_celery.demo.processes import DemoError, Interrupted, Interrupts, Processes, find_server
from bucketflow_celery.demo.report import report_comparisons, report_levels
from bucketflow_celery.demo.run_log import RunLog
from bucketflow_celery.demo.scenario import ScenarioRunner, start_workers
from bucketflow_celery.demo.screen import ComparisonView, LevelsView
from bucketflow_celery.demo.workload import COLUMNS, DEFAULT, Order, WorkloadError, read

__all__ = ["run"]

#: Columns of output that is no terminal.
LOG_WIDTH = 100


def run(argv: Sequence[str]) -> int:
    """
    Run the demo.

    Args:
        argv: The arguments of the command line.

    Returns:
        0: every promise was kept. 1: a promise was broken, or the demo failed. 2: the workload has a mistake.
        128 + n: signal n ended the demo.
    """
    options = _parser().parse_args(argv)
    console, errors = Console(), Console(stderr=True)
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    try:
        orders, load = read(options.workload), QUICK if options.quick else FULL
        options.output.mkdir(parents=True, exist_ok=True)
        interrupts = Interrupts()
        with interrupts.handled():
            return _demonstrate(orders, load, options.output, console, interrupts)
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
    text = f"what the first scenario sends: a CSV file with the columns {columns}; a task is {tasks}"
    text += " (default: the file of the package)"
    parser.add_argument("workload", nargs="?", type=Path, default=DEFAULT, help=text)
    text = "where the chart goes (default: %(default)s)"
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR", help=text)
    text = f"send {QUICK.noisy_tasks} and {QUICK.quiet_tasks} tasks in the second scenario"
    text += f" instead of {FULL.noisy_tasks} and {FULL.quiet_tasks}"
    parser.add_argument("--quick", action="store_true", help=text)
    return parser


def _demonstrate(orders: Sequence[Order], load: Load, output: Path, console: Console, interrupts: Interrupts) -> int:
    first, second = _run_on_workers(orders, load, console, interrupts)
    summary, comparisons = summarise(first), Comparison.all_of(second)
    broken = report_levels(console, summary) + report_comparisons(console, summarise(second), comparisons)
    # Imported late: matplotlib takes half a second, by which the workers would start later.
    from bucketflow_celery.demo.chart import draw  # noqa: PLC0415

    path = output / "throttle.png"
    draw(first, summary, comparisons, path)
    console.print(f"chart: {path.resolve()}", soft_wrap=True, markup=False, highlight=False)
    return 1 if broken else 0


def _run_on_workers(
    orders: Sequence[Order], load: Load, console: Console, interrupts: Interrupts
) -> tuple[RunLog, RunLog]:
    with tempfile.TemporaryDirectory(prefix="bucketflow-demo-", ignore_cleanup_errors=True) as directory:
        processes = Processes(Path(directory), interrupts)
        environment: Environment | None = None
        try:
            console.print("starting a server and two workers ...", highlight=False)
            environment = Environment.new(find_server(os.environ, Path(directory), processes))
            configure(environment)
            start_workers(environment, processes)
            return _run_scenarios(orders, load, ScenarioRunner(console, environment, processes), console)
        finally:
            with interrupts.held():
                processes.kill()
                if environment is not None and os.environ.get("REDIS_URL"):
                    with suppress(RedisError):
                        environment.delete_keys()


def _run_scenarios(
    orders: Sequence[Order], load: Load, runner: ScenarioRunner, console: Console
) -> tuple[RunLog, RunLog]:
    first = runner.run(orders, LevelsView)
    console.print("second scenario: one noisy tenant, retry against park", highlight=False)
    second = runner.run(comparison_orders(load), ComparisonView)
    runner.finish()
    return first, second
