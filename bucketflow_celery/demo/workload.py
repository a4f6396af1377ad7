"""What is sent, to whom and when: read from a CSV file that the user may replace. Pure, but for reading it."""

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

#: The workload that comes with the package.
DEFAULT = Path(__file__).with_name("workload.csv")

COLUMNS = ("second", "tenant", "task", "cost")


class WorkloadError(ValueError):
    """
    A file that cannot be sent.

    Attributes:
        where: File, line and column.
        problem: What stands there, and what would be right.
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
    One task to send.

    Attributes:
        second: When, counted from the start of the run.
        tenant: Whom it is for.
        task: Which task, by its short name.
        cost: Tokens it takes at every level.
    """

    second: float
    tenant: str
    task: str
    cost: float


def read(path: Path) -> list[Order]:
    """
    Read the file at *path*; see :func:`parse`.

    Raises:
        WorkloadError: It cannot be read, or is no workload.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(str(path), f"cannot be read ({error})") from None
    return parse(text, str(path))


def parse(text: str, name: str = "workload") -> list[Order]:
    """
    Read a workload.

    Args:
        text: A header with the four columns in any order, then a line for each task.
        name: Of the file, for messages.

    Returns:
        The orders by second; length >= 1.

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
        raise WorkloadError(f"{name}, line 2", "nothing stands there, expected a task to send")
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
