"""What a worker was dispatched, and what the store must still be told of it."""

from __future__ import annotations

import threading

import pytest

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.outbox import ACK_DELAY, MAX_UNREPORTED, MAX_UNREPORTED_SECONDS, AckTracker
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
def in_flight(news):
    return InFlightTasks(lambda: news.append(True))


# InFlightTasks


@pytest.mark.parametrize("back", [ENDED, not ENDED])
def test_the_end_of_a_task_is_told_once(in_flight, news, back):
    on_end = in_flight.add("w", dispatched(b"1"))
    assert (in_flight.settlements(), news) == ([], [])
    on_end(back)
    assert news == [True]
    ((queue, settlement),) = in_flight.settlements()
    assert queue == "q"
    assert settlement == (Settlement("w", returned=((b"1", LANE, True),)) if back else Settlement("w", ended=(b"1",)))
    assert in_flight.settlements() == []
    assert in_flight.has(b"1"), "until the store has delivered of it"
    in_flight.confirm(queue, settlement, delivered=True)
    assert not in_flight.has(b"1")
    on_end(ENDED)
    assert in_flight.settlements() == []


def test_what_was_not_heard_is_told_again_in_its_order_but_for_refunds(in_flight):
    for uid in (b"1", b"2", b"3", b"4"):
        in_flight.add("w", dispatched(uid))
    in_flight.return_unstarted(b"1")
    in_flight.return_unstarted(b"2")
    in_flight.refund(b"1", PATH, 2.0)
    ((queue, first),) = in_flight.settlements()
    assert first == Settlement("w", returned=((b"1", LANE, False), (b"2", LANE, False)), refunds=((PATH, 2.0),))
    in_flight.return_unstarted(b"3")
    in_flight.confirm(queue, first, delivered=False)
    in_flight.return_unstarted(b"4")
    ((_, again),) = in_flight.settlements()
    assert [uid for uid, _, _ in again.returned] == [b"1", b"2", b"3", b"4"]
    assert again.refunds == ()
    assert all(in_flight.has(uid) for uid in (b"1", b"2", b"3", b"4"))


def test_each_queue_is_told_and_each_name_that_the_worker_had(in_flight):
    tasks = [("old", "q", b"1"), ("new", "q", b"2"), ("new", "r", b"3"), ("new", "r", b"4")]
    ends = [in_flight.add(worker, dispatched(uid, queue)) for worker, queue, uid in tasks]
    for on_end in ends:
        on_end(ENDED)
    assert {(queue, settlement.worker): settlement.ended for queue, settlement in in_flight.settlements()} == {
        ("q", "old"): (b"1",),
        ("q", "new"): (b"2",),
        ("r", "new"): (b"3", b"4"),
    }


def test_a_task_that_comes_again_after_it_went_back_is_another(in_flight):
    in_flight.add("w", dispatched(b"1"))
    in_flight.return_unstarted(b"1")
    ((queue, settlement),) = in_flight.settlements()
    in_flight.confirm(queue, settlement, delivered=True)
    on_end = in_flight.add("w", dispatched(b"1"))
    assert in_flight.has(b"1")
    on_end(ENDED)
    assert in_flight.settlements() == [("q", Settlement("w", ended=(b"1",)))]


def test_whoever_tells_of_ends_from_threads_tells_each_of_them(in_flight):
    tasks = [in_flight.add("w", dispatched(bytes([number // 256, number % 256]))) for number in range(4000)]
    delivered = []

    def work(mine):
        for number, on_end in enumerate(mine):
            on_end(ENDED)
            for queue, settlement in in_flight.settlements():
                is_heard = number % 3 > 0
                delivered.extend(settlement.ended if is_heard else ())
                in_flight.confirm(queue, settlement, delivered=is_heard)

    threads = [threading.Thread(target=work, args=(tasks[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    delivered += [uid for _, settlement in in_flight.settlements() for uid in settlement.ended]
    assert len(delivered) == len(set(delivered)) == len(tasks)


# What the broker has forgotten

STORY = [
    # messages acknowledged at 0 s, asked at, due, how many are told
    (1, ACK_DELAY, None, 0),
    (1, MAX_UNREPORTED_SECONDS, None, 1),
    (1, MAX_UNREPORTED_SECONDS + 0.1, "q", 1),
    (MAX_UNREPORTED, ACK_DELAY + 0.1, None, MAX_UNREPORTED),
    (MAX_UNREPORTED + 1, ACK_DELAY, None, 0),
    (MAX_UNREPORTED + 1, ACK_DELAY + 0.1, "q", MAX_UNREPORTED + 1),
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
