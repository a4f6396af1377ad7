"""The demo: what it computes, and that it runs on real servers and leaves nothing behind."""

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
from bucketflow_celery.demo import summary as summaries
from bucketflow_celery.demo.envelope import envelope
from bucketflow_celery.demo.ledger import Ledger
from bucketflow_celery.demo.limits import NOISY, QUEUE, QUIET, SIDES, label, path_of, queue_of
from bucketflow_celery.demo.sides import compare, rival_orders
from bucketflow_celery.demo.summary import summarise
from bucketflow_celery.demo.utilisation import Change, utilisation
from bucketflow_celery.demo.workload import DEFAULT, Order, WorkloadError, parse, read

ROOT = Path(__file__).parents[2]
HEADER = "second,tenant,task,cost\n"

LIMITS = st.builds(Limit, st.integers(1, 8), st.integers(1, 8))
STARTS = st.lists(st.builds(Start, st.integers(0, 40).map(lambda tick: tick / 8), st.integers(1, 3)), max_size=12)


# --- windows: exact, whatever the starts ---


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
    ([0.0, 9.0, 9.0, 9.5], 3, 0.5),  # a rest does not pay for it
]


@pytest.mark.parametrize(("times", "cost", "over"), WINDOWS)
def test_a_window_over_its_limit_is_seen(times, cost, over):
    worst = worst_window(Limit(2, 1), [Start(at, 1) for at in times])
    assert (worst.cost, worst.over) == (cost, over)


@given(LIMITS, STARTS.map(sorted))
def test_starts_cross_the_line_of_the_chart_exactly_if_a_window_is_over(limit, starts):
    corners = envelope(limit, starts, until=10.0)
    assert [at for at, _ in corners] == sorted(at for at, _ in corners)
    sums = list(accumulate(start.cost for start in starts))
    lines = dict(corners)  # of several starts at once the last corner counts, and so does the last sum
    crossed = any(total > lines[start.at] + 1e-9 for start, total in zip(starts, sums, strict=True))
    worst = worst_window(limit, starts)
    assert crossed == (worst is not None and worst.over > 1e-9)


# --- utilisation: what was lost while work waited ---

QUEUE_LEVEL, TENANT_LEVEL = path_of("brick", "order")  # 40/s and 10/s, a second's worth each
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


def test_a_tenant_that_starts_whenever_it_may_uses_all_of_its_limit():
    uses = utilisation(at_full_speed(5.0))
    assert uses[TENANT_LEVEL.key].seconds == pytest.approx(5.0)
    assert uses[TENANT_LEVEL.key].share == 1.0


def test_nobody_waits_for_a_queue_that_has_tokens():
    assert utilisation(at_full_speed(5.0))[QUEUE_LEVEL.key].seconds == 0


def test_a_tenant_that_rests_while_its_bucket_is_full_has_lost_those_tokens():
    # Full again 1 s after the burst, and nothing starts for 4 s: 3 s of tokens are lost.
    changes = [starts(0.0, waiting=0) for _ in range(10)] + [waits(0.0), starts(4.0)]
    use = utilisation(changes)[TENANT_LEVEL.key]
    assert (use.seconds, use.spilled) == (pytest.approx(4.0), pytest.approx(3.0))
    assert use.share == pytest.approx(0.25)


def test_who_waits_for_a_dry_queue_does_not_charge_its_tenant():
    others = [path_of(f"tenant {number}", "order") for number in range(4)]
    dry = [starts(0.0, path, waiting=0) for path in others for _ in range(10)]
    waiting = [change for tick in range(1, 41) for change in (waits(0.0), starts(tick / 40))]
    uses = utilisation(dry + waiting[:20])
    assert uses[QUEUE_LEVEL.key].share == 1.0
    assert uses[QUEUE_LEVEL.key].seconds == pytest.approx(0.25)
    assert uses[TENANT_LEVEL.key].seconds == 0


# --- the verdict ---


def ledger_of(times, orders=None):
    """Return a run of orders of brick's, sent at once and started at *times*; ``None``: never."""
    orders = orders or [Order(0.0, "brick", "order", 1.0) for _ in times]
    ledger = Ledger(orders)
    for number, (order, at) in enumerate(zip(orders, times, strict=True)):
        ledger.sent[str(number)] = (0.0, order)
        if at is not None:
            ledger.starts[str(number)] = [at]
    ledger.deliveries = Counter({str(number): 2 for number in range(len(orders))})
    return ledger


KEPT = [0.0] * 10 + [tick / 10 for tick in range(1, 11)]


def test_a_run_within_its_limits_breaks_no_promise():
    summary = summarise(ledger_of(KEPT))
    assert summary.broken == []
    assert [label(line.level) for line in summary.lines] == [f"queue {QUEUE}", "tenant brick"]
    assert [line.deliveries for line in summary.lines] == [2.0, 2.0]
    assert [line.used for line in summary.lines] == [1.0, 1.0]


def test_starts_that_a_busy_machine_noted_late_break_no_promise():
    late = summaries.RESERVATION_GRACE
    assert summarise(ledger_of(sorted(max(at, 0.5 if 0.5 - late <= at <= 0.5 else at) for at in KEPT))).broken == []


BROKEN = [
    ([*KEPT, None], "1 tasks were lost"),
    ([0.0] * 14, "tenant brick exceeded its limit"),
    ([0.0] * 10 + [tick / 20 for tick in range(1, 21)], "tenant brick exceeded its limit"),  # twice as fast
]


@pytest.mark.parametrize(("times", "promise"), BROKEN)
def test_a_broken_promise_is_named(times, promise):
    assert summarise(ledger_of(times)).broken == [promise]


def test_a_task_that_starts_twice_is_named():
    ledger = ledger_of(KEPT)
    ledger.starts["0"].append(9.0)
    assert summarise(ledger).broken == ["1 tasks started more than once"]


# --- the second act ---


def played(order_of):
    """Return a second act in which each queue starts a task every 50 ms, in the order that *order_of* gives them."""
    ledger = Ledger(rival_orders())
    for side in SIDES:
        orders = [order for order in ledger.orders if order.task == side]
        for number, order in enumerate(order_of(orders)):
            ledger.sent[f"{side} {number}"] = (order.second, order)
            ledger.starts[f"{side} {number}"] = [(number + 1) / 20]
            ledger.deliveries[f"{side} {number}"] = 1
    return ledger


def first_come(orders):
    return orders


def in_turns(orders):
    """Noisy's tasks of the first 1.5 s, then one of each tenant's, then what is left of noisy's."""
    noisy, quiet = ([order for order in orders if order.tenant == tenant] for tenant in (NOISY, QUIET))
    pairs = zip(noisy[30:], quiet, strict=False)
    return [*noisy[:30], *(order for pair in pairs for order in pair), *noisy[30 + len(quiet) :]]


def test_both_sides_are_sent_the_same_at_the_same_time_to_queues_of_their_own():
    retry, park = ([(order.second, order.tenant) for order in rival_orders() if order.task == side] for side in SIDES)
    assert retry == park
    assert {tenant for _, tenant in retry} == {NOISY, QUIET}
    assert [queue_of(side) for side in SIDES] == list(SIDES)
    assert [[label(level) for level in path_of(QUIET, side)] for side in SIDES] == [["queue retry"], ["queue park"]]


def test_a_quiet_tenant_is_done_late_behind_a_noisy_one_and_soon_with_its_fair_share():
    late, soon = (compare(played(order_of))[1] for order_of in (first_come, in_turns))
    assert late.done_after(QUIET) == pytest.approx(180 / 20 - 1.5)
    assert soon.done_after(QUIET) == soon.fair == pytest.approx(2.0)
    assert late.done_after(NOISY) == pytest.approx(160 / 20)
    assert soon.deliveries == 1.0


def test_only_park_promises_a_fair_share():
    retry, park = compare(played(first_come))
    assert retry.broken == []
    assert park.broken == ["with park tenant quiet was done after 7.5 s, by its fair share after 2.0 s"]
    assert compare(played(in_turns))[1].broken == []


def test_a_tenant_that_lost_a_task_was_never_done():
    ledger = played(in_turns)
    for side in SIDES:
        del ledger.starts[f"{side} 69"]  # the last of quiet's
    retry, park = compare(ledger)
    assert (retry.done(NOISY), retry.done(QUIET)) == ("after 9.0 s", "never")
    assert park.broken == ["with park tenant quiet was done never, by its fair share after 2.0 s"]
    assert summarise(ledger).broken == ["2 tasks were lost"]


# --- the workload ---


def test_the_workload_is_sent_by_second_whatever_the_order_of_lines_and_columns():
    text = "cost, task, tenant, second\n2, report, acme, 1.5\n1, order, brick, 0\n\n"
    assert parse(text) == [Order(0.0, "brick", "order", 1.0), Order(1.5, "acme", "report", 2.0)]


BAD_WORKLOADS = [
    ("", "line 1: "),
    ("second,tenant,task\n", "line 1: the columns are ['second', 'tenant', 'task']"),
    (HEADER, "line 2: nothing stands there"),
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
def test_a_bad_workload_is_refused_with_its_line_and_column(text, message):
    with pytest.raises(WorkloadError) as raised:
        parse(text)
    assert message in str(raised.value)


def test_the_workload_to_replace_is_the_one_that_comes_with_the_package():
    assert (ROOT / "examples" / "workload.csv").samefile(DEFAULT)
    orders = read(DEFAULT)
    assert {order.tenant for order in orders} == {"acme", "brick", "cedar"}
    assert orders[-1].second < 30


# --- the whole of it ---

SMALL = HEADER + "0,brick,order,1\n" * 25 + "0.5,acme,report,2\n" * 3 + "1,cedar,order,1\n" * 5


class Demo:
    """A run of the demo in a process of its own; all that it starts carry its mark in their environment."""

    def __init__(self, directory, text=SMALL, **environment):
        self.mark = uuid4().hex
        self.output = directory / "out"
        self.log = directory / "printed"
        workload = directory / "workload.csv"
        workload.write_text(text)
        env = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bucketflow_celery.demo", str(workload), "--output", str(self.output)],
            cwd=directory,
            env={**env, "PYTHONPATH": str(ROOT), "DEMO_TEST_MARK": self.mark, "TMPDIR": str(directory), **environment},
            stdout=self.log.open("wb"),
            stderr=subprocess.STDOUT,
            # Whoever runs the tests in the background has them, and what they start, ignore Ctrl-C.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no threads here
        )

    @property
    def text(self):
        """What it has printed so far."""
        return self.log.read_text()

    def family(self):
        """Return the processes there are, the demo's own left out."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != self.process.pid and process.environ().get("DEMO_TEST_MARK") == self.mark:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def kill(self):
        for process in [*self.family(), self.process]:
            process.kill()


@pytest.fixture
def start_demo(tmp_path):
    """Yield what starts a demo in *tmp_path*, and end whatever is left of it."""
    demos = []

    def start(*args, **environment):
        demos.append(Demo(tmp_path, *args, **environment))
        return demos[-1]

    yield start
    for demo in demos:
        demo.kill()


def assert_ended(demo, status):
    """Wait until it has ended and return what it printed: with *status*, and nothing is left of it."""
    demo.process.wait(60)
    assert demo.process.returncode == status, demo.text
    assert demo.family() == [], demo.text
    assert list(demo.log.parent.glob("bucketflow-demo-*")) == []  # its temporary files
    return demo.text


def test_the_demo_obeys_the_limits_and_says_so(start_demo):
    demo = start_demo()
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


def test_the_demo_uses_the_server_it_is_given_and_leaves_it_as_it_was(start_demo, redis_server, redis_client):
    redis_client.set("somebody's", "value")
    assert_ended(start_demo(REDIS_URL=redis_server.url), 0)
    assert redis_client.keys() == [b"somebody's"]


MOMENTS = {
    "while its server and workers start": lambda demo: len(demo.family()) >= 2,
    "while tasks run": lambda demo: re.search(r"started [1-9]", demo.text),
    "while tasks are parked": lambda demo: re.search(r"park: noisy [1-9]", demo.text),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_demo_that_is_interrupted_leaves_no_process_behind(start_demo, moment, number):
    demo = start_demo(SMALL if "parked" in moment else HEADER + "0,brick,order,1\n" * 400)
    wait_until(lambda: MOMENTS[moment](demo), timeout=30, pause=0.05)
    demo.process.send_signal(number)
    text = assert_ended(demo, 128 + number)
    assert "nothing was left behind" in text


def test_an_interrupted_demo_takes_its_keys_from_a_server_it_was_given(start_demo, redis_server, redis_client):
    redis_client.set("somebody's", "value")
    demo = start_demo(HEADER + "0,brick,order,1\n" * 400, REDIS_URL=redis_server.url)
    wait_until(lambda: len(redis_client.keys("{bucketflow-demo-*starts")) > 0, timeout=30)
    demo.process.send_signal(signal.SIGINT)
    assert_ended(demo, 130)
    assert redis_client.keys() == [b"somebody's"]


def test_a_demo_whose_worker_dies_says_so_and_ends_the_others(start_demo):
    demo = start_demo(HEADER + "0,brick,order,1\n" * 400)
    workers = lambda: [process for process in demo.family() if "worker" in process.cmdline() and process.children()]  # noqa: E731
    wait_until(lambda: len(workers()) == 2, timeout=30)
    workers()[0].kill()
    assert "ended with status -9" in assert_ended(demo, 1)


def test_a_demo_without_its_server_says_so(start_demo):
    text = assert_ended(start_demo(REDIS_URL=f"redis://127.0.0.1:{free_port()}"), 1)
    assert "the server at REDIS_URL does not answer" in text


def test_a_demo_with_a_bad_workload_starts_nothing(start_demo):
    text = assert_ended(start_demo(HEADER + "0,acme,order,many\n"), 2)
    assert "workload.csv, line 2, column cost: 'many' is not a number" in text
    assert "starting" not in text
