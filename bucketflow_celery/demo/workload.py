"""The workload of the first scenario: a CSV file with one line for each task to send."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

from bucketflow.errors import CostExceedsCapacity
from bucketflow_celery.config.levels import check_cost
from bucketflow_celery.demo.limits import TASKS, path_of

__all__ = ["COLUMNS", "DEFAULT", "Order", "WorkloadError", "parse", "read"]

#: The workload file of the package.
DEFAULT = Path(__file__).with_name("workload.csv")

COLUMNS = ("second", "tenant", "task", "cost")


class WorkloadError(ValueError):
    """
    Raised for a workload file with a mistake.

    Attributes:
        where: File, line and column of the mistake.
        problem: The value found and the value expected.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(where, problem)
        self.where = where
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


@dataclass(frozen=True, slots=True)
class Order:
    """
    A task to send.

    Attributes:
        second: When to send it, in seconds since the run began.
        tenant: Its tenant.
        task: Its task name.
        cost: Tokens it takes at every level.
    """

    second: float
    tenant: str
    task: str
    cost: float


def read(path: Path) -> list[Order]:
    """
    Read the workload file at *path*; see :func:`parse`.

    Raises:
        WorkloadError: The file cannot be read or has a mistake.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(str(path), f"cannot be read ({error})") from None
    return parse(text, str(path))


def parse(text: str, name: str = "workload") -> list[Order]:
    """
    Parse a workload.

    Args:
        text: A header with the four columns in any order, then one line for each task.
        name: The file's name, for messages.

    Returns:
        The orders, sorted by second; length >= 1.

    Raises:
        WorkloadError: The first mistake, with its line and column.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [field.strip() for field in reader.fieldnames or ()]
        if sorted(header) != sorted(COLUMNS):
            raise WorkloadError(f"{name}, line 1", f"the columns are {header}, expected {', '.join(COLUMNS)}")
        reader.fieldnames = header
        orders = [_order(row, f"{name}, line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise WorkloadError(f"{name}, line {reader.line_num}", f"is not CSV ({error})") from None
    if not orders:
        raise WorkloadError(f"{name}, line 2", "no task to send, expected at least one")
    return sorted(orders, key=lambda order: order.second)


def _order(row: dict[str, str], line: str) -> Order:
    for column in COLUMNS:
        if not (row[column] or "").strip():
            raise WorkloadError(f"{line}, column {column}", "it is empty")
    if None in row:
        raise WorkloadError(line, f"has more than the columns {', '.join(COLUMNS)}")
    task = row["task"].strip()
    if task not in TASKS:
        raise WorkloadError(f"{line}, column task", f"{task!r} is none of {', '.join(TASKS)}")
    second = _number(row["second"], f"{line}, column second", "a number of seconds, 0 or more")
    cost = _number(row["cost"], f"{line}, column cost", "a number of tokens above 0")
    if cost == 0:
        raise WorkloadError(f"{line}, column cost", f"{row['cost']!r} is not a number of tokens above 0")
    tenant = row["tenant"].strip()
    try:
        check_cost(path_of(tenant, task), cost)
    except CostExceedsCapacity as error:
        raise WorkloadError(f"{line}, column cost", str(error)) from None
    return Order(second, tenant, task, cost)


def _number(text: str, where: str, expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise WorkloadError(where, f"{text!r} is not {expected}")
    return number
