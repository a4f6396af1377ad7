"""Hold queues: order, retries and reservations."""

from __future__ import annotations

import pytest

from bucketflow_celery import Limit
from bucketflow_celery.admission.hold_queues import HoldQueue, HoldQueues
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.scheduling.admit import NO_DEADLINE, AdmissionDecision, AdmissionRequest

ALL = Level("all", "all", Limit(1, 1))
QUEUE = Level("queue", "q:q", Limit(1, 10))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
PATH = (QUEUE, TENANT)


def pending(*, cost=1.0, max_wait=None, retry_at=0.0, reservation=None, rank=0):
    reservations = {} if reservation is None else {TENANT.key: reservation}
    task = PendingTask(object(), "q", 0.0, reservations=reservations, retry_at=retry_at, rank=rank)
    task.policy = ThrottlePolicy(PATH, cost, max_wait)
    return task


def test_a_hold_queue_of_a_queue_is_first_in_first_out():
    queue, tasks = HoldQueue(QUEUE), [pending() for _ in range(4)]
    for task in tasks:
        queue.add(task)
    head = queue.take_ready(0.0, 1)
    queue.put_back(head)
    assert list(queue.tasks) == tasks


def test_a_hold_queue_of_a_queue_is_ordered_by_rank_first():
    queue = HoldQueue(QUEUE)
    usual, urgent = [pending(rank=9, retry_at=7.0) for _ in range(3)], [pending(rank=0) for _ in range(2)]
    for task in [*usual, *urgent]:
        queue.add(task)
    assert list(queue.tasks) == [*urgent, *usual]
    assert queue.retry_at == 7.0, "no call before the head, which was refused, said that tokens come"
    assert queue.wait_ahead(1.0, rank=0) == 6 + 1 / 10
    taken = queue.take_ready(7.0, 2)
    more_urgent = pending(rank=-1)
    queue.add(more_urgent)
    queue.put_back(taken)
    assert list(queue.tasks) == [more_urgent, *urgent, *usual]


EXCHANGES = [
    # what waits with the later reservation, whether it uses the earlier one of a usual task that is due
    ({"rank": 0}, True),
    ({"rank": 9}, False),
    ({"rank": 12}, False),
    ({"rank": 0, "cost": 2.0}, False),
    ({"rank": 0, "retry_at": 31.0}, False),  # the usual task could not wait so long
]


@pytest.mark.parametrize(("waiting", "exchanges"), EXCHANGES)
def test_a_more_urgent_task_of_the_same_cost_uses_an_earlier_reservation(waiting, exchanges):
    queue, due = HoldQueue(TENANT), pending(rank=9, reservation=10)
    task = pending(reservation=20, **waiting)
    queue.add(task)
    assert (queue.more_urgent(due, before=30.0) is task) == exchanges


def test_an_exchange_swaps_the_reservations_of_two_tasks_and_keeps_the_place_of_the_one_that_gives_way():
    urgent, due = pending(rank=0, reservation=20, retry_at=8.0), pending(rank=9, reservation=10, retry_at=3.0)
    due.reservations["other"] = 4
    urgent.take_reservation_of(due, TENANT.key)
    assert (urgent.reservations, urgent.retry_at) == ({TENANT.key: 10}, 3.0)
    assert (due.reservations, due.retry_at) == ({TENANT.key: 20, "other": 19}, 8.0)
    assert due.precedence(TENANT.key) == (9, 10) < pending(rank=9, reservation=15).precedence(TENANT.key)


def test_a_hold_queue_of_a_tenant_is_ordered_by_reservation():
    queue = HoldQueue(TENANT)
    third, first, second = pending(reservation=30), pending(reservation=10, retry_at=9.0), pending(reservation=20)
    for task in (third, first, second):
        queue.add(task)
    assert list(queue.tasks) == [first, second, third]
    assert queue.retry_at == 9.0
    assert queue.take_ready(1.0, 9) == []  # the head may not retry yet, so no task behind it may


@pytest.mark.parametrize(
    ("late", "limit", "cost", "taken"),
    [(0.0, 64, 1, 2), (0.5, 64, 1, 7), (0.5, 3, 1, 3), (0.5, 64, 5, 3), (1e6, 64, 1, 9)],
)
def test_a_retry_takes_the_head_a_task_per_new_token_and_one_more(late, limit, cost, taken):
    queue = HoldQueue(QUEUE)
    for _ in range(9):
        queue.add(pending(cost=cost, retry_at=10.0))
    assert len(queue.take_ready(10.0 + late, limit)) == taken


def test_a_task_that_joins_a_hold_queue_waits_for_all_tasks_ahead():
    queue = HoldQueue(QUEUE)
    assert queue.wait_ahead(0.0) == 0
    queue.add(pending(cost=2, retry_at=3.0))
    assert queue.wait_ahead(0.0) == 3
    queue.add(pending(cost=5))
    assert queue.wait_ahead(1.0) == 2 + 5 / 10


def test_a_new_task_is_blocked_by_all_before_its_queue_and_never_by_its_tenant():
    queues = HoldQueues()
    path = (ALL, *PATH)
    queues.of(TENANT.key, TENANT).add(pending(reservation=1))
    assert queues.blocking(path) is None
    queues.of(QUEUE.key, QUEUE).add(pending())
    assert queues.blocking(path) is queues.of(QUEUE.key, QUEUE)
    queues.of(ALL.key, ALL).add(pending())
    assert queues.blocking(path) is queues.of(ALL.key, ALL)
    assert len(queues) == len(list(queues)) == 3


def test_an_empty_hold_queue_blocks_no_task_and_is_pruned():
    queues = HoldQueues()
    queue = queues.of(QUEUE.key, QUEUE)
    queue.add(pending())
    assert queues.next_retry_at() == 0
    queues.remove(set(queues))
    assert queues.blocking(PATH) is None
    queues.prune()
    assert queues.of(QUEUE.key, QUEUE) is not queue
    assert queues.next_retry_at() == float("inf")


def test_a_reservation_of_a_queue_is_shared_and_one_of_a_tenant_belongs_to_the_task():
    queues, first, second = HoldQueues(), pending(), pending()
    request = queues.request(first, 0.0)
    assert request == AdmissionRequest(PATH, 1.0, (0, 0), NO_DEADLINE)
    queues.keep(first, AdmissionDecision(admitted=False, binding=1, wait=5, reservations=(7, 9)))
    assert first.reservations == {TENANT.key: 9}
    assert queues.request(second, 0.0).reservations == (7, 0)
    assert queues.request(first, 0.0).reservations == (0, 9)


def test_reservations_outlive_the_tasks_and_the_pruning_of_their_hold_queue():
    queues, task = HoldQueues(), pending()
    queues.keep(task, AdmissionDecision(admitted=False, binding=0, wait=5, reservations=(7, 0)))
    queues.of(QUEUE.key, QUEUE).add(task)
    assert queues.clear() == [task]
    queues.prune()
    assert queues.request(task, 0.0).reservations == (7, 0)


def test_a_hold_queue_adopts_a_changed_limit():
    queues, changed = HoldQueues(), Level("queue", QUEUE.key, Limit(2, 20))
    queues.of(QUEUE.key, QUEUE)
    assert queues.of(QUEUE.key, changed).level is changed


def test_a_request_without_a_reply_keeps_its_reservations():
    queues, head = HoldQueues(), pending()
    for reservation in (30, 10, 20):
        queues.keep(head, AdmissionDecision(admitted=False, binding=0, wait=5, reservations=(reservation, 0)))
    requests = [queues.request(head, 0.0) for _ in range(2)]
    assert [request.reservations[0] for request in requests] == [10, 20]
    queues.restore(requests)
    assert [queues.request(head, 0.0).reservations[0] for _ in range(4)] == [10, 20, 30, 0]


@pytest.mark.parametrize(
    ("max_wait", "lifetime", "waited", "left"),
    [
        (None, None, 9, NO_DEADLINE),
        (3, None, 1, 2_000_000),
        (3, None, 9, 0),
        (None, 3, 1, 2_000_000),
        (None, 3, 9, 0),
        (3, 5, 1, 2_000_000),
        (5, 3, 1, 2_000_000),
        (None, 1e12, 0, NO_DEADLINE),
    ],
)
def test_a_request_contains_the_time_until_max_wait_or_expiry(max_wait, lifetime, waited, left):
    task = pending(max_wait=max_wait)
    task.waiting_since = 1000.0
    task.expires_at = None if lifetime is None else 1000.0 + lifetime
    assert HoldQueues().request(task, waited).max_wait_us == left
