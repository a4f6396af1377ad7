"""Prefetch window and pool slots, on minimal stand-ins with Celery's own semaphore and QoS."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from celery.worker import state
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from kombu.common import QoS

from bucketflow_celery import Limit
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.slots import CountedSlots, SemaphoreSlots, slots_of

ALL = Level("all", "all", Limit(1, 1))
QUEUE = Level("queue", "q:q", Limit(1, 1))
TENANT = Level("tenant", "q:q/t:a", Limit(1, 1))
PREFETCH = 4


class TaskConsumer:
    """Stand-in for Kombu's ``Consumer``: the set of consumed queues."""

    def __init__(self, queues):
        self.queues = set(queues)

    def cancel_by_queue(self, queue):
        self.queues.discard(queue)

    def consuming_from(self, queue):
        return queue in self.queues

    def add_queue(self, queue):
        self.queues.add(queue)

    def consume(self):
        pass


class Request:
    """An unacknowledged request."""

    acknowledged = False


def worker(*queues, prefetch=PREFETCH, driver="redis", qos_global=True):
    return SimpleNamespace(
        connection=SimpleNamespace(transport=SimpleNamespace(driver_type=driver)),
        initial_prefetch_count=prefetch,
        qos_global=qos_global,
        qos=QoS(lambda **_: None, prefetch),
        task_consumer=TaskConsumer(queues),
        call_soon=lambda function, *args: function(*args),
        app=SimpleNamespace(amqp=SimpleNamespace(queues=Queues({queue: queue for queue in queues}))),
    )


class Queues(dict):
    @property
    def consume_from(self):
        return self


def pending_task(queue="q"):
    return PendingTask(Request(), queue, 0.0)


@pytest.mark.parametrize(
    ("queues", "level", "widened_by"),
    [
        ("q", TENANT, 1),  # tasks of other tenants could start
        ("q", QUEUE, 0),  # no other task could start: the worker stops fetching
        ("qr", QUEUE, 1),  # tasks of the other queue could start
        ("qr", ALL, 0),
        ("q", None, 0),
        ("qr", None, 1),
    ],
)
def test_a_held_message_widens_the_window_only_if_others_could_start(queues, level, widened_by):
    consumer = worker(*queues)
    window, held = PrefetchWindow(consumer), pending_task()
    window.widen(held, level)
    assert consumer.qos.value == PREFETCH + widened_by
    window.narrow(held)
    assert consumer.qos.value == PREFETCH


@pytest.mark.parametrize("level", [QUEUE, None])
def test_a_queue_whose_held_messages_fill_a_window_is_paused_until_half_of_them_have_gone(level):
    consumer = worker("q", "r")
    window, held = PrefetchWindow(consumer), [pending_task() for _ in range(PREFETCH)]
    for task in held[:-1]:
        window.widen(task, level)
    assert consumer.task_consumer.queues == {"q", "r"}
    window.widen(held[-1], level)
    assert consumer.task_consumer.queues == {"r"}
    window.narrow(held[0])
    assert consumer.task_consumer.queues == {"r"}
    window.narrow(held[1])
    assert consumer.task_consumer.queues == {"q", "r"}
    assert consumer.qos.value == PREFETCH + 2


def test_a_paused_queue_that_the_user_has_cancelled_is_not_resumed():
    consumer = worker("q", "r")
    window, held = PrefetchWindow(consumer), [pending_task() for _ in range(PREFETCH)]
    for task in held:
        window.widen(task, QUEUE)
    del consumer.app.amqp.queues["q"]
    for task in held:
        window.narrow(task)
    assert consumer.task_consumer.queues == {"r"}


@pytest.mark.parametrize("options", [{"prefetch": 0}, {"driver": "amqp", "qos_global": False}])
def test_an_unlimited_or_per_queue_window_is_not_changed(options):
    consumer = worker("q", "r", **options)
    before = consumer.qos.value
    window, held = PrefetchWindow(consumer), pending_task()
    window.widen(held, TENANT)
    assert consumer.qos.value == before
    window.narrow(held)
    assert consumer.qos.value == before


def test_narrowing_for_a_task_that_was_not_held_changes_nothing():
    consumer = worker("q", "r")
    PrefetchWindow(consumer).narrow(pending_task())
    assert consumer.qos.value == PREFETCH


@pytest.fixture(autouse=True)
def clear_reserved_requests():
    yield
    state.reserved_requests.clear()


# Slots


class Pool:
    """A pool that queues tasks until ``finish`` runs the next one."""

    def __init__(self, slots, *, processes=False):
        self.num_processes, self.uses_semaphore = slots, processes
        self.work = []

    def apply_async(self, target, args=(), callback=None, error_callback=None, **_options):
        self.work.append((target, args, callback, error_callback))

    def finish(self, *, failing=False):
        target, args, callback, error_callback = self.work.pop(0)
        if not self.uses_semaphore:
            target(*args)
        elif failing:
            error_callback("lost")
        else:
            callback("done")


def controller(pool):
    made = SimpleNamespace(pool=pool)
    callbacks = {"callback": lambda _result: None, "error_callback": lambda _result: None}
    made._process_task = lambda request: pool.apply_async(lambda: request, (), **callbacks)
    made.process_task = made._process_task
    return made


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_the_slots_of_a_pool_are_counted(processes, failing):
    pool, called, soon = Pool(2, processes=processes), [], []
    slots = slots_of(controller(pool), soon.append)
    assert isinstance(slots, CountedSlots)
    slots.start("one")
    slots.start("two")
    assert slots.free() == 0
    slots.when_free(lambda: called.append(1))
    slots.when_free(lambda: called.append(2))  # repeated calls count as one
    assert not soon
    pool.finish(failing=failing)
    assert slots.free() == 1
    assert [callback() for callback in soon] == [None]
    assert called == [2]
    pool.finish()
    assert slots.free() == 2
    assert len(soon) == 1


def test_a_target_that_raises_frees_its_slot():
    pool = Pool(1)
    slots = CountedSlots(controller(pool), lambda callback: callback())
    slots._controller.pool.apply_async(lambda: 1 / 0, ())
    assert slots.free() == 0
    with pytest.raises(ZeroDivisionError):
        pool.finish()
    assert slots.free() == 1


def test_two_callbacks_of_one_task_free_one_slot():
    pool = Pool(2, processes=True)
    slots = CountedSlots(controller(pool), lambda callback: callback())
    slots.start("one")
    slots.start("two")
    _, _, callback, error_callback = pool.work[0]
    callback("done")
    error_callback("lost")
    assert slots.free() == 1


def test_if_a_slot_is_free_the_callback_runs_soon():
    soon = []
    slots = CountedSlots(controller(Pool(1)), soon.append)
    slots.when_free(print)
    assert soon == [print]


def test_the_slots_of_prefork_are_those_of_its_semaphore():
    started, called = [], []
    made = SimpleNamespace(semaphore=LaxBoundedSemaphore(2), _process_task=started.append)
    made._process_task_sem = made.process_task = lambda request: request
    slots = slots_of(made, lambda _callback: None)
    assert isinstance(slots, SemaphoreSlots)
    slots.start("one")
    slots.start("two")
    assert (slots.free(), started) == (0, ["one", "two"])
    slots.when_free(lambda: called.append(slots.free()))
    slots.when_free(lambda: called.append(slots.free()))
    made.semaphore.release()
    assert called == [1]
    assert slots.free() == 1
    made.semaphore.release()
    assert (called, slots.free()) == ([1], 2)


def test_running_tasks_keep_their_slots_after_a_lost_connection():
    semaphore = LaxBoundedSemaphore(3)
    slots = SemaphoreSlots(SimpleNamespace(semaphore=semaphore))
    running = [Request(), Request()]
    for request in running:
        semaphore.acquire(lambda: None)
        state.active_requests.add(request)
    try:
        semaphore.clear()  # as Celery does when it has lost the connection
        slots.forget()
        assert slots.free() == 1
        for _ in running:
            semaphore.release()
        assert slots.free() == 3
    finally:
        state.active_requests.difference_update(running)
