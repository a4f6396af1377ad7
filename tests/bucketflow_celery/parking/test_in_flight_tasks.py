"""Dispatched tasks until their outcome is reported, and acknowledgements until the broker has processed them."""

from __future__ import annotations

import threading

import pytest

from bucketflow_celery.config.levels import Level
from bucketflow_celery.config.limit import Limit
from bucketflow_celery.parking.in_flight_tasks import InFlightTasks
from bucketflow_celery.parking.outbox import ACK_DELAY, MAX_UNREPORTED, MAX_UNREPORTED_SECONDS, AckTracker
from bucketflow_celery.scheduling.model import DispatchedTask, Lane, LeasedTask, ParkedTask, Refund, Settlement

LANE = Lane("a", "f", 3)
ENDED = False
PATH = (Level("all", "all", Limit(1, 1)),)


def dispatched(uid, queue="q"):
    return DispatchedTask(LeasedTask(queue, LANE, ParkedTask(uid, 0)), b"", admitted=True)


@pytest.fixture
def wakeups():
    return []


@pytest.fixture
def in_flight(wakeups):
    return InFlightTasks(lambda: wakeups.append(True))


# InFlightTasks


@pytest.mark.parametrize("returns", [ENDED, not ENDED])
def test_the_outcome_of_a_task_is_reported_once(in_flight, wakeups, returns):
    on_end = in_flight.add("w", dispatched(b"1"))
    assert (in_flight.settlements(), wakeups) == ([], [])
    on_end(returns)
    assert wakeups == [True]
    ((queue, settlement),) = in_flight.settlements()
    assert queue == "q"
    assert settlement == (
        Settlement("w", returned=((b"1", LANE, True),)) if returns else Settlement("w", ended=(b"1",))
    )
    assert in_flight.settlements() == []
    assert in_flight.has(b"1"), "until the store has confirmed the report"
    in_flight.confirm(queue, settlement, delivered=True)
    assert not in_flight.has(b"1")
    on_end(ENDED)
    assert in_flight.settlements() == []


def test_an_undelivered_report_is_repeated_in_order_without_its_refunds(in_flight):
    for uid in (b"1", b"2", b"3", b"4"):
        in_flight.add("w", dispatched(uid))
    in_flight.return_unstarted(b"1")
    in_flight.return_unstarted(b"2")
    refund = Refund(PATH, 2.0, "a", 2.0)
    in_flight.refund(b"1", refund)
    ((queue, first),) = in_flight.settlements()
    assert first == Settlement("w", returned=((b"1", LANE, False), (b"2", LANE, False)), refunds=(refund,))
    in_flight.return_unstarted(b"3")
    in_flight.confirm(queue, first, delivered=False)
    in_flight.return_unstarted(b"4")
    ((_, repeated),) = in_flight.settlements()
    assert [uid for uid, _, _ in repeated.returned] == [b"1", b"2", b"3", b"4"]
    assert repeated.refunds == ()
    assert all(in_flight.has(uid) for uid in (b"1", b"2", b"3", b"4"))


def test_outcomes_are_reported_by_queue_and_by_worker_name(in_flight):
    tasks = [("old", "q", b"1"), ("new", "q", b"2"), ("new", "r", b"3"), ("new", "r", b"4")]
    ends = [in_flight.add(worker, dispatched(uid, queue)) for worker, queue, uid in tasks]
    for on_end in ends:
        on_end(ENDED)
    assert {(queue, settlement.worker): settlement.ended for queue, settlement in in_flight.settlements()} == {
        ("q", "old"): (b"1",),
        ("q", "new"): (b"2",),
        ("r", "new"): (b"3", b"4"),
    }


def test_a_returned_task_that_is_dispatched_again_is_tracked_anew(in_flight):
    in_flight.add("w", dispatched(b"1"))
    in_flight.return_unstarted(b"1")
    ((queue, settlement),) = in_flight.settlements()
    in_flight.confirm(queue, settlement, delivered=True)
    on_end = in_flight.add("w", dispatched(b"1"))
    assert in_flight.has(b"1")
    on_end(ENDED)
    assert in_flight.settlements() == [("q", Settlement("w", ended=(b"1",)))]


def test_outcomes_from_several_threads_are_each_reported_once(in_flight):
    tasks = [in_flight.add("w", dispatched(bytes([number // 256, number % 256]))) for number in range(4000)]
    delivered = []

    def work(callbacks):
        for number, on_end in enumerate(callbacks):
            on_end(ENDED)
            for queue, settlement in in_flight.settlements():
                is_delivered = number % 3 > 0
                delivered.extend(settlement.ended if is_delivered else ())
                in_flight.confirm(queue, settlement, delivered=is_delivered)

    threads = [threading.Thread(target=work, args=(tasks[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    delivered += [uid for _, settlement in in_flight.settlements() for uid in settlement.ended]
    assert len(delivered) == len(set(delivered)) == len(tasks)


# AckTracker

STORY = [
    # messages acknowledged at 0 s, now, queue that is due, messages taken
    (1, ACK_DELAY, None, 0),
    (1, MAX_UNREPORTED_SECONDS, None, 1),
    (1, MAX_UNREPORTED_SECONDS + 0.1, "q", 1),
    (MAX_UNREPORTED, ACK_DELAY + 0.1, None, MAX_UNREPORTED),
    (MAX_UNREPORTED + 1, ACK_DELAY, None, 0),
    (MAX_UNREPORTED + 1, ACK_DELAY + 0.1, "q", MAX_UNREPORTED + 1),
]


@pytest.mark.parametrize(("count", "now", "due", "taken"), STORY)
def test_acknowledgements_are_taken_after_the_ack_delay_and_due_in_batches(count, now, due, taken):
    acks = AckTracker()
    for number in range(count):
        acks.add("q", bytes([number % 256]), 0.0)
    assert acks.due(now) == due
    assert len(acks.take("q", now)) == taken
    assert acks.take("q", now) == ()


def test_recent_acknowledgements_are_kept_and_queues_are_independent():
    acks = AckTracker()
    acks.add("q", b"1", 0.0)
    acks.add("q", b"2", 8.0)
    acks.add("r", b"3", 1.0)
    assert acks.due(10.5) == "q"
    assert acks.take("q", 10.5) == (b"1",)
    assert acks.due(10.5) is None
    assert acks.due(11.5) == "r"
    assert acks.take("other", 100) == ()
