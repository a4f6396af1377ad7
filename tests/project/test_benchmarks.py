"""The benchmarks: short runs without other libraries, the figures computed from them, and the page."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest

from benchmarks.library import (
    __main__,
    charts,
    document,
    footprint,
    memory_rows,
    outage,
    redis_rows,
    results,
    server_time,
    waiting,
)
from benchmarks.library.implementation import Implementation, Size, runner
from benchmarks.library.memory_limiters import ASYNC_BASELINE, ASYNC_OURS, BASELINE, OURS
from benchmarks.library.parts import PARTS
from benchmarks.library.redis_limiters import BASELINE as PING
from benchmarks.library.redis_limiters import Database, for_tasks, for_threads, waiting_for_threads
from benchmarks.library.results import Entry, Row
from benchmarks.library.rows import measure_row
from benchmarks.library.targets import TARGETS, evaluate
from benchmarks.library.timing import Runner, UnequalCountError, time_interleaved
from benchmarks.throttle import backlog, fairness, measuring, rate_limits

SMALL = {"rounds": 1, "slice_seconds": 0.005}


@pytest.fixture
def database(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    with closing(Database(redis_server.port)) as database:
        yield database


def without_peers(implementations):
    return [one for one in implementations if one.role == "ours" or one.name == PING]


def names(row):
    return {entry.name for entry in row.entries}


def test_every_part_names_a_function():
    for part in PARTS.values():
        assert callable(getattr(import_module(f"benchmarks.library.{part.module}"), part.function))


def test_an_unknown_part_is_reported(capsys):
    assert __main__.main(["memory", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no such part: nowhere; there are memory, ")


def test_the_rows_in_memory_can_be_run():
    rows = memory_rows.rows([BASELINE, OURS], [ASYNC_BASELINE, ASYNC_OURS], rounds=1)
    assert names(rows[0]) == {BASELINE.name, "BucketFlow", "BucketFlow, 3 levels"}
    assert all({ASYNC_BASELINE.name, "BucketFlow"} == names(row) for row in rows if "asyncio" in row.key)
    assert len({row.key for row in rows}) == len(rows)


def test_the_rows_through_redis_can_be_run(database):
    rows = redis_rows.thread_rows(without_peers(for_threads(database)), ((1, 1), (4, 3)), **SMALL)
    assert names(rows[0]) == {PING, "BucketFlow", "BucketFlow, 3 levels"}
    assert names(rows[1]) == {PING, "BucketFlow"}
    rows = redis_rows.task_rows(database, without_peers(for_tasks(database)), ((1, 1, 3), (8, 2, 1)), **SMALL)
    assert [names(row) for row in rows] == [{PING, "BucketFlow"}] * 2
    assert all("BucketFlow" in names(row) for row in redis_rows.lease_rows(database, **SMALL))


@pytest.mark.parametrize("prepare", [runner, "replayed"])
def test_the_server_counts_its_own_time(database, prepare):
    prepare = partial(server_time.replayed, database) if prepare == "replayed" else prepare
    row = server_time.row(
        database, without_peers(for_threads(database))[1:], partial(prepare, levels=3), "3 levels", 2, 5
    )
    assert row.value("BucketFlow", "server_us") > 0


def test_a_replayed_call_takes_as_many_tokens_as_the_call(database):
    keys = ("replayed root", "replayed leaf")
    ours = next(one for one in for_threads(database) if one.name == "BucketFlow")
    it = ours.path(Size(100, 0.001), keys)
    again = server_time.replayed(database, replace(ours, path=lambda *_: it), levels=2)
    before = it.tokens
    again.run(5)
    assert before - it.tokens == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(("role", "admitted"), [("ours", 0.5), ("baseline", 2)])
def test_ours_or_a_baseline_that_does_other_work_fails_the_row(role, admitted):
    lazy = Runner("lazy", role, lambda calls: int(calls * admitted) + 2)
    with pytest.raises(UnequalCountError, match=r"lazy admitted \d+ of \d+ calls"):
        time_interleaved([runner(OURS), lazy], **SMALL)


def test_a_peer_that_does_other_work_is_left_out_and_reported():
    lazy = Implementation("lazy", lambda _, __: None, "False")
    row = measure_row("key", "title", [BASELINE, OURS, lazy], runner, **SMALL)
    assert names(row) == {BASELINE.name, "BucketFlow"}
    assert row.left_out == {"lazy": "admitted 0 of 2 calls instead of 2"}


def test_a_peer_that_is_not_installed_is_left_out_and_reported():
    def absent(_size, _key):
        raise ImportError("no such library")

    row = measure_row("key", "title", [BASELINE, OURS, Implementation("absent", absent, "True")], runner, **SMALL)
    assert row.left_out == {"absent": "no such library"}


def round_of(*served):
    """Return a round whose waiters got tokens at these times, in fair waits, and waited from one to the next."""
    waiters = []
    for times in served:
        waits = [later - earlier for earlier, later in zip([0, *times], times, strict=False)]
        scaled = [[figure * waiting.FAIR_WAIT for figure in figures] for figures in (times, waits)]
        waiters.append(waiting.Waiter(*scaled))
    return waiting.Round(0.0, waiters)


FAIR = [[position / 8 + number for number in range(10)] for position in range(1, 9)]


@pytest.mark.parametrize(
    ("served", "achieved", "spread", "longest"),
    [
        (FAIR, 1.0, 0.0, 1.0),
        ([*FAIR[:7], FAIR[7][:5]], 75 / 79, 5 / 75 * 8, 1.0),  # one waiter ended at half-time
        ([*FAIR[:7], [0.5, 10]], 72 / 80, 8 / 72 * 8, 9.5),  # one waiter starved
    ],
)
def test_waiting_is_measured_by_the_limit_used_the_spread_and_the_longest_wait(served, achieved, spread, longest):
    figures = waiting.figures_of(round_of(*served))
    assert figures == pytest.approx(
        {"achieved": achieved, "spread": spread, "longest": longest, "refused": 0, "errors": 0}
    )


def test_waiting_threads_and_tasks_are_measured(database):
    ours = [one for one in waiting_for_threads(database) if one.name == "BucketFlow"]
    row = waiting.row("key", "title", ours, waiting.by_threads, rounds=1, seconds=0.2)
    assert row.value("BucketFlow", "errors") == row.value("BucketFlow", "refused") == 0
    row = waiting.row("key", "title", [ASYNC_OURS], waiting.by_tasks(database.event_loop), rounds=1, seconds=0.2)
    assert row.value("BucketFlow", "errors") == row.value("BucketFlow", "refused") == 0


def test_the_outcome_of_an_outage_is_recorded_for_every_caller():
    row = outage.row("key", "title", partial(outage._signalled, signal.SIGKILL), timeout=10)
    assert row.of("BucketFlow").note == row.of("BucketFlow, asyncio").note == "StoreUnavailable"


def test_a_bucket_takes_memory_and_in_redis_only_until_it_is_full():
    row = footprint.in_process(["BucketFlow"], buckets=50, idle=0)
    assert row.value("BucketFlow", "live") > 0
    row = footprint.in_redis(idle=0)
    assert row.value("BucketFlow", "live") > 0
    assert 0 < row.value("BucketFlow", "expires") <= 1.1  # ten tokens at ten a second, then up to 0.1 s


def entry(name, role, over_baseline, over_ours):
    return Entry(name, role, {"seconds": 1e-6, "rate": 1e6, "over_baseline": over_baseline, "over_ours": over_ours})


def in_memory(baseline, peer, rust=0.3):
    """Return a row of ours at *baseline* times the baseline's time, and peers at multiples of ours."""
    ours = entry("BucketFlow", "ours", baseline, 1.0)
    peers = [entry("other", "peer", 9, peer), entry("rust-py-rate-limit", "peer", 0.5, rust)]
    return Row("memory-1", "1 thread", [ours, entry(BASELINE.name, "baseline", 1, 1 / baseline), *peers])


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (in_memory(1.1, 1.2), [True, True]),
        (in_memory(1.2, 1.2), [False, True]),
        (in_memory(1.1, 0.9), [True, False]),
        (replace(in_memory(1.1, 1.2), entries=in_memory(1.1, 1.2).entries[:2]), [True, None]),
    ],
)
def test_a_target_is_met_missed_or_not_measured(row, met):
    evaluated = evaluate({"memory-1": row}, compiled=False)
    assert [result.met for result in evaluated[:2]] == met
    assert [result.measured for result in evaluated if result.met is None][-2] == "not measured"
    assert len(evaluated) == len(TARGETS) + 1


@pytest.mark.parametrize(("rust", "met"), [(0.9, False), (1.1, True)])
def test_a_compiled_core_has_a_target_of_its_own(rust, met):
    rows = {"memory-1": in_memory(1.1, 1.2, rust)}
    assert evaluate(rows, compiled=True)[-1].met is met
    assert evaluate(rows, compiled=False)[-1].met is None


def test_the_results_of_a_part_are_kept_until_the_next_run(tmp_path):
    row = replace(in_memory(1.1, 1.2), left_out={"absent": "not installed"})
    results.save("memory", [row], tmp_path)
    assert results.load("memory", tmp_path) == [row]
    results.clear(tmp_path)
    assert results.load("memory", tmp_path) == []


def test_the_page_shows_measured_rows_and_names_missing_ones(tmp_path):
    row = replace(in_memory(1.2, 3.0), left_out={"absent": "not installed"})
    text = document.text({row.key: row})
    assert "| in memory, 1 thread | ≤ 1.15 × a minimal bucket | 1.20 × | **no** |" in text
    assert "| **BucketFlow** | 1,000 |" in text
    assert "- 1 thread: absent: not installed" in text
    assert "Not measured." in text
    assert charts.draw({row.key: row}, tmp_path) == [tmp_path / "in-memory.svg"]
    assert "BucketFlow" in (tmp_path / "in-memory.svg").read_text()


def test_the_page_shows_exactly_the_charts_that_are_drawn():
    shown = re.findall(r"\]\(benchmarks/([\w-]+)\.svg\)", document.TEMPLATE.read_text())
    assert sorted(shown) == sorted(charts.CHARTS)


def test_the_backlog_is_measured(redis_server):
    del redis_server  # skips the test on a machine without a server
    small, large = backlog.measure([20, 40], rounds=2, calls=2)
    assert (small.parked, large.parked) == (20, 40)
    assert min(large.dispatch, large.refuse, large.settle, large.park, large.later) > 0


@pytest.mark.parametrize("module", [rate_limits, fairness])
def test_an_unknown_row_is_reported(module, capsys):
    assert measuring.report(module.ROWS, ["nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no such row: nowhere; there are ")
