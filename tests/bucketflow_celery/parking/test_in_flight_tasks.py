"""What a worker was dispatched, and what the store must still be told of it."""

from __future__ import annotations

import threading

import pytest

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.outbox import LONG, MANY, SURE, AckTracker
from bucketflow_celery.scheduling.model import DispatchedTask, Lane, LeasedTask, ParkedTask, Settlement

LANE = Lane("a", "f", 3)
ENDED = False
PATH = (Level("all", "all", Limit(1, 1)),)


def dispatched(uid, queue="q"):
    return DispatchedTask(LeasedTask(queue, LANE, ParkedTask(uid, 0)), b"", admitted=True)


@pytest.fixture
def news():
    return []


@pytest.fixture
def holdings(news):
    return InFlightTasks(lambda: news.append(True))


# InFlightTasks


@pytest.mark.parametrize("back", [ENDED, not ENDED])
def test_the_end_of_a_task_is_told_once(holdings, news, back):
    on_end = holdings.take("w", dispatched(b"1"))
    assert (holdings.settlements(), news) == ([], [])
    on_end(back)
    assert news == [True]
    ((queue, settlement),) = holdings.settlements()
    assert queue == "q"
    assert settlement == (Settlement("w", returned=((b"1", LANE, True),)) if back else Settlement("w", ended=(b"1",)))
    assert holdings.settlements() == []
    assert holdings.has(b"1"), "until the store has delivered of it"
    holdings.confirm(queue, settlement, delivered=True)
    assert not holdings.has(b"1")
    on_end(ENDED)
    assert holdings.settlements() == []


def test_what_was_not_heard_is_told_again_in_its_order_but_for_refunds(holdings):
    for uid in (b"1", b"2", b"3", b"4"):
        holdings.take("w", dispatched(uid))
    holdings.give_back(b"1")
    holdings.give_back(b"2")
    holdings.refund(b"1", PATH, 2.0)
    ((queue, first),) = holdings.settlements()
    assert first == Settlement("w", returned=((b"1", LANE, False), (b"2", LANE, False)), refunds=((PATH, 2.0),))
    holdings.give_back(b"3")
    holdings.confirm(queue, first, delivered=False)
    holdings.give_back(b"4")
    ((_, again),) = holdings.settlements()
    assert [uid for uid, _, _ in again.returned] == [b"1", b"2", b"3", b"4"]
    assert again.refunds == ()
    assert all(holdings.has(uid) for uid in (b"1", b"2", b"3", b"4"))


def test_each_queue_is_told_and_each_name_that_the_worker_had(holdings):
    tasks = [("old", "q", b"1"), ("new", "q", b"2"), ("new", "r", b"3"), ("new", "r", b"4")]
    ends = [holdings.take(worker, dispatched(uid, queue)) for worker, queue, uid in tasks]
    for on_end in ends:
        on_end(ENDED)
    assert {(queue, settlement.worker): settlement.ended for queue, settlement in holdings.settlements()} == {
        ("q", "old"): (b"1",),
        ("q", "new"): (b"2",),
        ("r", "new"): (b"3", b"4"),
    }


def test_a_task_that_comes_again_after_it_went_back_is_another(holdings):
    holdings.take("w", dispatched(b"1"))
    holdings.give_back(b"1")
    ((queue, settlement),) = holdings.settlements()
    holdings.confirm(queue, settlement, delivered=True)
    on_end = holdings.take("w", dispatched(b"1"))
    assert holdings.has(b"1")
    on_end(ENDED)
    assert holdings.settlements() == [("q", Settlement("w", ended=(b"1",)))]


def test_whoever_tells_of_ends_from_threads_tells_each_of_them(holdings):
    tasks = [holdings.take("w", dispatched(bytes([number // 256, number % 256]))) for number in range(4000)]
    delivered = []

    def work(mine):
        for number, on_end in enumerate(mine):
            on_end(ENDED)
            for queue, settlement in holdings.settlements():
                is_heard = number % 3 > 0
                delivered.extend(settlement.ended if is_heard else ())
                holdings.confirm(queue, settlement, delivered=is_heard)

    threads = [threading.Thread(target=work, args=(tasks[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    delivered += [uid for _, settlement in holdings.settlements() for uid in settlement.ended]
    assert len(delivered) == len(set(delivered)) == len(tasks)


# What the broker has forgotten

STORY = [
    # messages acknowledged at 0 s, asked at, due, how many are told
    (1, SURE, None, 0),
    (1, LONG, None, 1),
    (1, LONG + 0.1, "q", 1),
    (MANY, SURE + 0.1, None, MANY),
    (MANY + 1, SURE, None, 0),
    (MANY + 1, SURE + 0.1, "q", MANY + 1),
]


@pytest.mark.parametrize(("count", "now", "due", "told"), STORY)
def test_it_is_told_when_it_is_sure_and_worth_a_call(count, now, due, told):
    confirming = AckTracker()
    for number in range(count):
        confirming.add("q", bytes([number % 256]), 0.0)
    assert confirming.due(now) == due
    assert len(confirming.take("q", now)) == told
    assert confirming.take("q", now) == ()


def test_what_is_not_sure_yet_waits_and_each_queue_by_itself():
    confirming = AckTracker()
    confirming.add("q", b"1", 0.0)
    confirming.add("q", b"2", 8.0)
    confirming.add("r", b"3", 1.0)
    assert confirming.due(10.5) == "q"
    assert confirming.take("q", 10.5) == (b"1",)
    assert confirming.due(10.5) is None
    assert confirming.due(11.5) == "r"
    assert confirming.take("other", 100) == ()
