"""The benchmarks work: small rounds without other libraries, what is reckoned from them, and the page."""

from __future__ import annotations

import re
import signal
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib import import_module

import compare
import pytest
from comparison import charts, document, footprint, memory_rows, outage, redis_rows, results, server_time, waiting
from comparison.contestant import Contestant, Size, racer
from comparison.goals import GOALS, verdicts
from comparison.in_memory import ASYNC_FLOOR, ASYNC_OURS, FLOOR, OURS
from comparison.parts import PARTS
from comparison.race import Racer, UnequalCountError, race
from comparison.redis_limiters import FLOOR as PING
from comparison.redis_limiters import Place, in_tasks, threaded, threaded_waiting
from comparison.results import Entry, Row
from comparison.rows import raced

SMALL = {"rounds": 1, "slice_seconds": 0.005}


@pytest.fixture
def place(redis_server, redis_client):
    assert redis_client.dbsize() == 0
    with closing(Place(redis_server.port)) as place:
        yield place


def without_peers(contestants):
    return [one for one in contestants if one.role == "ours" or one.name == PING]


def names(row):
    return {entry.name for entry in row.entries}


def test_every_part_is_there():
    for part in PARTS.values():
        assert callable(getattr(import_module(f"comparison.{part.module}"), part.function))


def test_a_part_that_is_not_there_is_named(capsys):
    assert compare.main(["memory", "nowhere"]) == 2
    assert capsys.readouterr().err.startswith("no such part: nowhere; there are memory, ")


def test_the_rows_in_memory_can_be_run():
    rows = memory_rows.rows([FLOOR, OURS], [ASYNC_FLOOR, ASYNC_OURS], rounds=1)
    assert names(rows[0]) == {FLOOR.name, "BucketFlow", "BucketFlow, 3 levels"}
    assert all({ASYNC_FLOOR.name, "BucketFlow"} == names(row) for row in rows if "asyncio" in row.key)
    assert len({row.key for row in rows}) == len(rows)


def test_the_rows_through_redis_can_be_run(place):
    rows = redis_rows.thread_rows(without_peers(threaded(place)), ((1, 1), (4, 3)), **SMALL)
    assert names(rows[0]) == {PING, "BucketFlow", "BucketFlow, 3 levels"}
    assert names(rows[1]) == {PING, "BucketFlow"}
    rows = redis_rows.task_rows(place, without_peers(in_tasks(place)), ((1, 1, 3), (8, 2, 1)), **SMALL)
    assert [names(row) for row in rows] == [{PING, "BucketFlow"}] * 2
    assert all("BucketFlow" in names(row) for row in redis_rows.lease_rows(place, **SMALL))


@pytest.mark.parametrize("way", [racer, "replayed"])
def test_the_server_counts_its_own_time(place, way):
    way = partial(server_time.replayed, place) if way == "replayed" else way
    row = server_time.row(place, without_peers(threaded(place))[1:], partial(way, levels=3), "3 levels", 2, 5)
    assert row.value("BucketFlow", "server_us") > 0


def test_what_is_replayed_takes_what_the_call_takes(place):
    keys = ("replayed root", "replayed leaf")
    ours = next(one for one in threaded(place) if one.name == "BucketFlow")
    it = ours.path(Size(100, 0.001), keys)
    again = server_time.replayed(place, replace(ours, path=lambda *_: it), levels=2)
    before = it.tokens
    again.run(5)
    assert before - it.tokens == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(("role", "admitted"), [("ours", 0.5), ("floor", 2)])
def test_a_contestant_that_does_other_work_fails_the_row(role, admitted):
    lazy = Racer("lazy", role, lambda calls: int(calls * admitted) + 2)
    with pytest.raises(UnequalCountError, match=r"lazy admitted \d+ of \d+ calls"):
        race([racer(OURS), lazy], **SMALL)


def test_a_peer_that_does_other_work_is_left_out_and_named():
    lazy = Contestant("lazy", lambda _, __: None, "False")
    row = raced("key", "title", [FLOOR, OURS, lazy], racer, **SMALL)
    assert names(row) == {FLOOR.name, "BucketFlow"}
    assert row.left_out == {"lazy": "admitted 0 of 2 calls instead of 2"}


def test_a_peer_that_is_not_there_is_left_out_and_named():
    def absent(_size, _key):
        raise ImportError("no such library")

    row = raced("key", "title", [FLOOR, OURS, Contestant("absent", absent, "True")], racer, **SMALL)
    assert row.left_out == {"absent": "no such library"}


def turn(*served):
    """Return eight who were each served at these times, in units of the fair wait, and had waited since the last."""
    waiters = []
    for times in served:
        waits = [later - earlier for earlier, later in zip([0, *times], times, strict=False)]
        scaled = [[figure * waiting.FAIR for figure in figures] for figures in (times, waits)]
        waiters.append(waiting.Waiter(*scaled))
    return waiting.Turn(0.0, waiters)


FAIR = [[place / 8 + number for number in range(10)] for place in range(1, 9)]


@pytest.mark.parametrize(
    ("served", "achieved", "spread", "longest"),
    [
        (FAIR, 1.0, 0.0, 1.0),
        ([*FAIR[:7], FAIR[7][:5]], 75 / 79, 5 / 75 * 8, 1.0),  # one went home at half-time
        ([*FAIR[:7], [0.5, 10]], 72 / 80, 8 / 72 * 8, 9.5),  # one was forgotten
    ],
)
def test_waiting_is_reckoned_by_the_limit_the_shares_and_the_longest(served, achieved, spread, longest):
    figures = waiting.reckoned(turn(*served))
    assert figures == pytest.approx(
        {"achieved": achieved, "spread": spread, "longest": longest, "refused": 0, "errors": 0}
    )


def test_all_who_wait_are_watched(place):
    ours = [one for one in threaded_waiting(place) if one.name == "BucketFlow"]
    row = waiting.row("key", "title", ours, waiting.by_threads, turns=1, seconds=0.2)
    assert row.value("BucketFlow", "errors") == row.value("BucketFlow", "refused") == 0
    row = waiting.row("key", "title", [ASYNC_OURS], waiting.by_tasks(place.event_loop), turns=1, seconds=0.2)
    assert row.value("BucketFlow", "errors") == row.value("BucketFlow", "refused") == 0


def test_an_outage_is_told_by_everybody_who_is_there():
    row = outage.row("key", "title", partial(outage._signalled, signal.SIGKILL), cap=10)
    assert row.of("BucketFlow").note == row.of("BucketFlow, asyncio").note == "StoreUnavailable"


def test_a_bucket_costs_memory_and_in_redis_only_until_it_is_full():
    row = footprint.in_process(["BucketFlow"], buckets=50, idle=0)
    assert row.value("BucketFlow", "live") > 0
    row = footprint.in_redis(idle=0)
    assert row.value("BucketFlow", "live") > 0
    assert 0 < row.value("BucketFlow", "expires") <= 1.1  # ten tokens at ten a second, then up to 0.1 s


def standing(name, role, over_floor, over_ours):
    return Entry(name, role, {"seconds": 1e-6, "rate": 1e6, "over_floor": over_floor, "over_ours": over_ours})


def in_memory(floor, peer, rust=0.3):
    """Return a row in which ours takes *floor* times as long as the floor, and a peer *peer* times as long as ours."""
    ours = standing("BucketFlow", "ours", floor, 1.0)
    peers = [standing("other", "peer", 9, peer), standing("rust-py-rate-limit", "peer", 0.5, rust)]
    return Row("memory-1", "1 thread", [ours, standing(FLOOR.name, "floor", 1, 1 / floor), *peers])


@pytest.mark.parametrize(
    ("row", "held"),
    [
        (in_memory(1.1, 1.2), [True, True]),
        (in_memory(1.2, 1.2), [False, True]),
        (in_memory(1.1, 0.9), [True, False]),
        (replace(in_memory(1.1, 1.2), entries=in_memory(1.1, 1.2).entries[:2]), [True, None]),
    ],
)
def test_a_goal_is_held_missed_or_not_measured(row, held):
    judged = verdicts({"memory-1": row}, compiled=False)
    assert [verdict.held for verdict in judged[:2]] == held
    assert [verdict.measured for verdict in judged if verdict.held is None][-2] == "not measured"
    assert len(judged) == len(GOALS) + 1


@pytest.mark.parametrize(("rust", "held"), [(0.9, False), (1.1, True)])
def test_the_compiled_core_has_a_goal_of_its_own(rust, held):
    rows = {"memory-1": in_memory(1.1, 1.2, rust)}
    assert verdicts(rows, compiled=True)[-1].held is held
    assert verdicts(rows, compiled=False)[-1].held is None


def test_what_a_part_has_found_is_kept_until_the_next_run(tmp_path):
    row = replace(in_memory(1.1, 1.2), left_out={"absent": "not there"})
    results.save("memory", [row], tmp_path)
    assert results.load("memory", tmp_path) == [row]
    results.clear(tmp_path)
    assert results.load("memory", tmp_path) == []


def test_the_page_shows_what_was_measured_and_what_was_not(tmp_path):
    row = replace(in_memory(1.2, 3.0), left_out={"absent": "not there"})
    text = document.text({row.key: row})
    assert "| in memory, 1 thread | ≤ 1.15 × a minimal bucket | 1.20 × | **no** |" in text
    assert "| **BucketFlow** | 1,000 |" in text
    assert "- 1 thread: absent: not there" in text
    assert "Not measured." in text
    assert charts.draw({row.key: row}, tmp_path) == [tmp_path / "in-memory.svg"]
    assert "BucketFlow" in (tmp_path / "in-memory.svg").read_text()


def test_every_chart_of_the_page_is_drawn_and_nothing_else_is_shown():
    shown = re.findall(r"\]\(benchmarks/([\w-]+)\.svg\)", document.TEMPLATE.read_text())
    assert sorted(shown) == sorted(charts.CHARTS)
