"""The demo: its figures, its workload files, and whole runs on real servers that leave no process or key behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import free_port, wait_until

from bucketflow.algorithm.window import Start, worst_window
from bucketflow.limit import Limit
from bucketflow_celery.demo.analysis import START_DELAY, Change, summarise, utilisation
from bucketflow_celery.demo.chart import envelope
from bucketflow_celery.demo.comparison import FULL, QUICK, Comparison, comparison_orders
from bucketflow_celery.demo.limits import MODES, NOISY, QUEUE, QUIET, label, path_of, queue_of
from bucketflow_celery.demo.run_log import RunLog
from bucketflow_celery.demo.workload import DEFAULT, Order, WorkloadError, parse, read

ROOT = Path(__file__).parents[2]
HEADER = "second,tenant,task,cost\n"

LIMITS = st.builds(Limit, st.integers(1, 8), st.integers(1, 8))
STARTS = st.lists(st.builds(Start, st.integers(0, 40).map(lambda tick: tick / 8), st.integers(1, 3)), max_size=12)


# --- windows ---


@given(LIMITS, STARTS.map(sorted))
def test_the_worst_window_is_the_worst_of_all_windows(limit, starts):
    every = [
        sum(start.cost for start in starts[i : j + 1])
        - (limit.capacity + limit.fill_rate * (starts[j].at - starts[i].at))
        for j in range(len(starts))
        for i in range(j + 1)
    ]
    worst = worst_window(limit, starts)
    assert (worst.over if worst else None) == max(every, default=None)
    if worst:
        inside = [start for start in starts if worst.first <= start.at <= worst.last]
        assert worst.cost <= sum(start.cost for start in inside)


WINDOWS = [  # capacity 2, 1 token/s: starts, what the worst window holds, over its limit by
    ([0.0], 1, -1),
    ([0.0, 0.0], 2, 0),
    ([0.0, 0.0, 0.0], 3, 1),
    ([0.0, 0.0, 1.0, 2.0, 3.0], 2, 0),
    ([0.0, 0.0, 0.5], 3, 0.5),  # half a token too early
    ([0.0, 9.0, 9.0, 9.5], 3, 0.5),  # idle time before does not compensate
]


@pytest.mark.parametrize(("times", "cost", "over"), WINDOWS)
def test_a_window_that_exceeds_its_limit_is_found(times, cost, over):
    worst = worst_window(Limit(2, 1), [Start(at, 1) for at in times])
    assert (worst.cost, worst.over) == (cost, over)


@given(LIMITS, STARTS.map(sorted))
def test_starts_cross_the_envelope_exactly_if_a_window_exceeds_its_limit(limit, starts):
    corners = envelope(limit, starts, until=10.0)
    assert [at for at, _ in corners] == sorted(at for at, _ in corners)
    sums = list(accumulate(start.cost for start in starts))
    line = dict(corners)  # the last corner of simultaneous starts; below, too, their last sum decides
    crossed = any(total > line[start.at] + 1e-9 for start, total in zip(starts, sums, strict=True))
    worst = worst_window(limit, starts)
    assert crossed == (worst is not None and worst.over > 1e-9)


# --- utilisation ---

QUEUE_LEVEL, TENANT_LEVEL = path_of("brick", "order")  # 40/s and 10/s, capacities 40 and 10
PATH = (QUEUE_LEVEL, TENANT_LEVEL)


def waits(at, path=PATH):
    return Change(at, path, 1.0, 1, started=False)


def starts(at, path=PATH, waiting=-1):
    return Change(at, path, 1.0, waiting, started=True)


def at_full_speed(until, path=PATH):
    """Yield a burst of 10 and then a start every 0.1 s."""
    for _ in range(10):
        yield starts(0.0, path, waiting=0)
    tick = 0
    while (tick := tick + 1) / 10 <= until:
        yield waits(0.0, path)
        yield starts(tick / 10, path)


def test_a_tenant_that_starts_at_its_rate_uses_all_of_its_tokens():
    usages = utilisation(at_full_speed(5.0))
    assert usages[TENANT_LEVEL.key].seconds == pytest.approx(5.0)
    assert usages[TENANT_LEVEL.key].share == 1.0


def test_no_task_waits_for_a_queue_that_has_tokens():
    assert utilisation(at_full_speed(5.0))[QUEUE_LEVEL.key].seconds == 0


def test_a_bucket_that_is_full_while_a_task_waits_loses_tokens():
    # The bucket is full 1 s after the burst. The next start is at 4 s: 3 s of tokens are lost.
    changes = [starts(0.0, waiting=0) for _ in range(10)] + [waits(0.0), starts(4.0)]
    usage = utilisation(changes)[TENANT_LEVEL.key]
    assert (usage.seconds, usage.overflowing) == (pytest.approx(4.0), pytest.approx(3.0))
    assert usage.share == pytest.approx(0.25)


def test_a_wait_for_an_exhausted_queue_does_not_count_for_the_tenant():
    others = [path_of(f"tenant {number}", "order") for number in range(4)]
    burst = [starts(0.0, path, waiting=0) for path in others for _ in range(10)]
    waiting = [change for tick in range(1, 41) for change in (waits(0.0), starts(tick / 40))]
    usages = utilisation(burst + waiting[:20])
    assert usages[QUEUE_LEVEL.key].share == 1.0
    assert usages[QUEUE_LEVEL.key].seconds == pytest.approx(0.25)
    assert usages[TENANT_LEVEL.key].seconds == 0


# --- broken promises ---


def log_of(times, orders=None):
    """Return a run of orders of tenant brick, all sent at 0 and started at *times*; ``None``: never."""
    orders = orders or [Order(0.0, "brick", "order", 1.0) for _ in times]
    log = RunLog(orders)
    for number, (order, at) in enumerate(zip(orders, times, strict=True)):
        log.sent[str(number)] = (0.0, order)
        if at is not None:
            log.starts[str(number)] = [at]
    log.deliveries = Counter({str(number): 2 for number in range(len(orders))})
    return log


KEPT = [0.0] * 10 + [tick / 10 for tick in range(1, 11)]


def test_a_run_within_its_limits_breaks_no_promise():
    summary = summarise(log_of(KEPT))
    assert summary.broken == []
    assert [label(one.level) for one in summary.levels] == [f"queue {QUEUE}", "tenant brick"]
    assert [one.deliveries for one in summary.levels] == [2.0, 2.0]
    assert [one.used for one in summary.levels] == [1.0, 1.0]


def test_starts_that_a_busy_machine_delayed_break_no_promise():
    delayed = sorted(max(at, 0.5 if 0.5 - START_DELAY <= at <= 0.5 else at) for at in KEPT)
    assert summarise(log_of(delayed)).broken == []


BROKEN = [
    ([*KEPT, None], "1 tasks were lost"),
    ([0.0] * 14, "tenant brick exceeded its limit"),
    ([0.0] * 10 + [tick / 20 for tick in range(1, 21)], "tenant brick exceeded its limit"),  # twice as fast
]


@pytest.mark.parametrize(("times", "promise"), BROKEN)
def test_a_broken_promise_is_reported(times, promise):
    assert summarise(log_of(times)).broken == [promise]


def test_a_task_that_starts_twice_is_reported():
    log = log_of(KEPT)
    log.starts["0"].append(9.0)
    assert summarise(log).broken == ["1 tasks started more than once"]


# --- the second scenario ---


def run_of(order_of):
    """Return a run in which each queue starts a task every 50 ms, in the order that *order_of* returns."""
    log = RunLog(comparison_orders())
    for mode in MODES:
        orders = [order for order in log.orders if order.task == mode]
        for number, order in enumerate(order_of(orders)):
            log.sent[f"{mode} {number}"] = (order.second, order)
            log.starts[f"{mode} {number}"] = [(number + 1) / 20]
            log.deliveries[f"{mode} {number}"] = 1
    return log


def first_come(orders):
    return orders


def fair_shares(orders):
    """Return the noisy tenant's orders of the first 1.5 s, then the tenants' alternately, then the rest."""
    noisy, quiet = ([order for order in orders if order.tenant == tenant] for tenant in (NOISY, QUIET))
    pairs = zip(noisy[30:], quiet, strict=False)
    return [*noisy[:30], *(order for pair in pairs for order in pair), *noisy[30 + len(quiet) :]]


@pytest.mark.parametrize("load", [FULL, QUICK])
def test_both_modes_are_sent_the_same_load_at_the_same_time_to_queues_of_their_own(load):
    orders = comparison_orders(load)
    retry, park = ([(order.second, order.tenant) for order in orders if order.task == mode] for mode in MODES)
    assert retry == park
    assert {tenant for _, tenant in retry} == {NOISY, QUIET}
    assert [queue_of(mode) for mode in MODES] == list(MODES)
    assert [[label(level) for level in path_of(QUIET, mode)] for mode in MODES] == [["queue retry"], ["queue park"]]


def test_a_quiet_tenant_is_done_late_in_arrival_order_and_early_with_its_fair_share():
    late, early = (Comparison.all_of(run_of(order_of))[1] for order_of in (first_come, fair_shares))
    assert late.duration(QUIET) == pytest.approx(180 / 20 - 1.5)
    assert early.duration(QUIET) == early.fair_duration == pytest.approx(2.0)
    assert late.duration(NOISY) == pytest.approx(160 / 20)
    assert early.deliveries == 1.0


def test_only_park_promises_a_fair_share():
    retry, park = Comparison.all_of(run_of(first_come))
    assert retry.broken == []
    assert park.broken == ["with park tenant quiet was done after 7.5 s, by its fair share after 2.0 s"]
    assert Comparison.all_of(run_of(fair_shares))[1].broken == []


def test_a_tenant_that_lost_a_task_was_never_done():
    log = run_of(fair_shares)
    for mode in MODES:
        del log.starts[f"{mode} 69"]  # the last of the quiet tenant
    retry, park = Comparison.all_of(log)
    assert (retry.describe_duration(NOISY), retry.describe_duration(QUIET)) == ("after 9.0 s", "never")
    assert park.broken == ["with park tenant quiet was done never, by its fair share after 2.0 s"]
    assert summarise(log).broken == ["2 tasks were lost"]


# --- workload files ---


def test_orders_are_sorted_by_second_and_columns_may_come_in_any_order():
    text = "cost, task, tenant, second\n2, report, acme, 1.5\n1, order, brick, 0\n\n"
    assert parse(text) == [Order(0.0, "brick", "order", 1.0), Order(1.5, "acme", "report", 2.0)]


BAD_WORKLOADS = [
    ("", "line 1: "),
    ("second,tenant,task\n", "line 1: the columns are ['second', 'tenant', 'task']"),
    (HEADER, "line 2: no task to send"),
    (HEADER + "soon,acme,order,1\n", "line 2, column second: 'soon' is not a number of seconds"),
    (HEADER + "0,acme,order,1\n-1,acme,order,1\n", "line 3, column second: '-1' is not"),
    (HEADER + "nan,acme,order,1\n", "line 2, column second: 'nan' is not"),
    (HEADER + "0,,order,1\n", "line 2, column tenant: it is empty"),
    (HEADER + "0,acme,order\n", "line 2, column cost: it is empty"),
    (HEADER + "0,acme,order,1,1\n", "line 2: has more than the columns"),
    (HEADER + "0,acme,oder,1\n", "line 2, column task: 'oder' is none of order, report"),
    (HEADER + "\n0,acme,order,0\n", "line 3, column cost: '0' is not a number of tokens above 0"),
    (HEADER + "0,brick,order,11\n", "line 2, column cost: q:demo/t:brick: 11 token(s) can never be granted"),
    (HEADER + '0,"acme,order,1\n', "is not CSV"),
]


@pytest.mark.parametrize(("text", "message"), BAD_WORKLOADS)
def test_a_mistake_in_a_workload_file_is_reported_with_its_line_and_column(text, message):
    with pytest.raises(WorkloadError) as raised:
        parse(text)
    assert message in str(raised.value)


def test_the_example_workload_is_the_default_of_the_package():
    assert (ROOT / "examples" / "workload.csv").samefile(DEFAULT)
    orders = read(DEFAULT)
    assert {order.tenant for order in orders} == {"acme", "brick", "cedar"}
    assert orders[-1].second < 30


# --- whole runs ---

SMALL = HEADER + "0,brick,order,1\n" * 25 + "0.5,acme,report,2\n" * 3 + "1,cedar,order,1\n" * 5


class Demo:
    """
    A run of the demo in a process of its own.

    Its child processes are found by a mark in their environment, which they inherit.
    """

    def __init__(self, directory, text=SMALL, *, quick=True, **environment):
        self.mark = uuid4().hex
        self.output = directory / "out"
        self.log = directory / "printed"
        workload = directory / "workload.csv"
        workload.write_text(text)
        options = ["--quick"] if quick else []
        env = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bucketflow_celery.demo", str(workload), "--output", str(self.output), *options],
            cwd=directory,
            env={**env, "PYTHONPATH": str(ROOT), "DEMO_TEST_MARK": self.mark, "TMPDIR": str(directory), **environment},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            # A shell starts background jobs with SIGINT ignored, and child processes inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        )

    @property
    def text(self):
        """Its output so far."""
        return self.log.read_text()

    def children(self):
        """Return its running child processes."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.process.pid and process.environ().get("DEMO_TEST_MARK") == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self):
        for process in [*self.children(), self.process]:
            process.kill()


@pytest.fixture
def start_demo(tmp_path):
    """Yield a function that starts a demo in *tmp_path*; kill the processes that it leaves behind."""
    demos = []

    def start(*args, **options):
        demos.append(Demo(tmp_path, *args, **options))
        return demos[-1]

    yield start
    for demo in demos:
        demo.kill()


def assert_ended(demo, status):
    """Wait until *demo* has ended with *status* and left nothing behind; return its output."""
    demo.process.wait(60)
    assert demo.process.returncode == status, demo.text
    assert demo.children() == [], demo.text
    assert list(demo.log.parent.glob("bucketflow-demo-*")) == []  # temporary files
    return demo.text


def test_the_demo_keeps_its_limits_and_reports_so(start_demo):
    demo = start_demo(quick=False)
    text = assert_ended(demo, 0)
    assert "33 tasks" in text
    for name in ("queue demo", "tenant acme", "tenant brick", "tenant cedar", "task report"):
        assert name in text
    assert "sent 33/33" in text  # progress, where there is no terminal
    assert "sent 360/360" in text
    assert text.count("tasks lost: 0   started twice: 0") == 2
    waits = re.search(r"quiet tenant is done after (\S+) s with retry and after (\S+) s with park", text)
    retry, park = map(float, waits.groups())
    assert park <= 3  # its fair share: 2 s
    assert retry >= 5
    assert re.search(r"deliveries +│ +1.00 │ +1.00 │", text)
    chart = demo.output / "throttle.png"
    assert str(chart) in text
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_the_demo_uses_the_server_of_redis_url_and_deletes_only_its_own_keys(start_demo, redis_server, redis_client):
    redis_client.set("other:key", "value")
    assert "sent 96/96" in assert_ended(start_demo(REDIS_URL=redis_server.url), 0)
    assert redis_client.keys() == [b"other:key"]


MOMENTS = {
    "while its server and workers start": lambda demo: len(demo.children()) >= 2,
    "while tasks run": lambda demo: re.search(r"started [1-9]", demo.text),
    "while tasks are parked": lambda demo: re.search(r"park: noisy [1-9]", demo.text),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_interrupted_demo_leaves_no_process_behind(start_demo, moment, number):
    parked = "parked" in moment  # the quick scenario may be over before the signal arrives
    demo = start_demo(SMALL if parked else HEADER + "0,brick,order,1\n" * 400, quick=not parked)
    wait_until(lambda: MOMENTS[moment](demo), timeout=30, pause=0.05)
    demo.process.send_signal(number)
    text = assert_ended(demo, 128 + number)
    assert "nothing was left behind" in text


def test_an_interrupted_demo_deletes_its_keys_from_the_server_of_redis_url(start_demo, redis_server, redis_client):
    redis_client.set("other:key", "value")
    demo = start_demo(HEADER + "0,brick,order,1\n" * 400, REDIS_URL=redis_server.url)
    wait_until(lambda: len(redis_client.keys("{bucketflow-demo-*starts")) > 0, timeout=30)
    demo.process.send_signal(signal.SIGINT)
    assert_ended(demo, 130)
    assert redis_client.keys() == [b"other:key"]


def test_a_worker_that_ends_early_is_reported_and_ends_the_demo(start_demo):
    demo = start_demo(HEADER + "0,brick,order,1\n" * 400)
    workers = lambda: [process for process in demo.children() if "worker" in process.cmdline() and process.children()]  # noqa: E731
    wait_until(lambda: len(workers()) == 2, timeout=30)
    workers()[0].kill()
    assert "ended with status -9" in assert_ended(demo, 1)


def test_a_server_that_does_not_answer_is_reported(start_demo):
    text = assert_ended(start_demo(REDIS_URL=f"redis://127.0.0.1:{free_port()}"), 1)
    assert "the server at REDIS_URL does not answer" in text


def test_a_workload_with_a_mistake_starts_no_process(start_demo):
    text = assert_ended(start_demo(HEADER + "0,acme,order,many\n"), 2)
    assert "workload.csv, line 2, column cost: 'many' is not a number" in text
    assert "starting" not in text
