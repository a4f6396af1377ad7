"""Prefetch window and pool slots, on minimal stand-ins with Kombu's own QoS and semaphore, and billiard's own jobs."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from types import SimpleNamespace

import pytest
from billiard.pool import ApplyResult
from celery.worker import state
from hypothesis import given
from hypothesis import strategies as st
from kombu.asynchronous.semaphore import LaxBoundedSemaphore
from kombu.common import QoS

from bucketflow_celery import Limit
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level
from bucketflow_celery.worker.held_requests import HeldRequests
from bucketflow_celery.worker.prefetch_window import PrefetchWindow
from bucketflow_celery.worker.slots import CountedSlots, ProcessSlots, slots_of

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


def window_of(consumer):
    return PrefetchWindow(consumer, HeldRequests(None))


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
    window, held = window_of(consumer), pending_task()
    window.widen(held, level)
    assert consumer.qos.value == PREFETCH + widened_by
    window.narrow(held)
    assert consumer.qos.value == PREFETCH


@pytest.mark.parametrize("queues", ["q", "qr"])
@pytest.mark.parametrize("level", [TENANT, QUEUE, ALL, None])
def test_no_held_message_counts_for_the_autoscaler(queues, level):
    state.reserved_requests.clear()
    requests = HeldRequests(None)
    window, held = PrefetchWindow(worker(*queues), requests), pending_task()
    state.reserved_requests.add(held.request)
    window.widen(held, level)
    assert requests.reserved() == 0
    window.narrow(held)
    assert requests.reserved() == 1
    state.reserved_requests.clear()


def test_messages_that_cannot_leave_widen_the_window_up_to_the_hold_limit():
    consumer, limit = worker("q"), 3
    window, held = PrefetchWindow(consumer, HeldRequests(None), limit), [pending_task() for _ in range(10)]
    for task in held:
        window.widen(task, TENANT, can_leave=False)
    assert consumer.qos.value == PREFETCH + limit
    window.widen(movable := pending_task(), TENANT, can_leave=True)
    assert consumer.qos.value == PREFETCH + limit + 1
    for task in [*held, movable]:
        window.narrow(task)
    assert consumer.qos.value == PREFETCH


@pytest.mark.parametrize("level", [QUEUE, None])
def test_a_queue_whose_held_messages_fill_a_window_is_paused_until_half_of_them_have_gone(level):
    consumer = worker("q", "r")
    window, held = window_of(consumer), [pending_task() for _ in range(PREFETCH)]
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
    window, held = window_of(consumer), [pending_task() for _ in range(PREFETCH)]
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
    window, held = window_of(consumer), pending_task()
    window.widen(held, TENANT)
    assert consumer.qos.value == before
    window.narrow(held)
    assert consumer.qos.value == before


@pytest.mark.parametrize(
    ("options", "hold_limit"),
    [
        ({}, 1000),
        ({"driver": "amqp"}, 1000),
        ({"driver": "amqp", "qos_global": False}, PREFETCH // 2),  # half of a window that cannot be widened
        ({"driver": "amqp", "qos_global": False, "prefetch": 1}, 0),
        ({"prefetch": 0}, inf),  # the broker sends all messages in any case
        ({"driver": "amqp", "qos_global": False, "prefetch": 0}, inf),
    ],
)
def test_a_worker_holds_as_much_as_its_window_allows(options, hold_limit):
    assert PrefetchWindow(worker("q", **options), HeldRequests(None), 1000).hold_limit == hold_limit


def test_narrowing_for_a_task_that_was_not_held_changes_nothing():
    consumer = worker("q", "r")
    window_of(consumer).narrow(pending_task())
    assert consumer.qos.value == PREFETCH


# Slots


class Pool:
    """
    A pool of *slots*; ``end`` ends its oldest job. A pool of processes keeps its jobs, as billiard does.

    Args:
        slots: Its processes, threads or greenlets.
        processes: Whether it has processes.
        knows_children: Whether it knows which of its processes have started, as under an event loop.
        tasks: Most tasks of a process.
    """

    def __init__(self, slots, *, processes=False, knows_children=False, tasks=None):
        self.uses_semaphore = processes
        self._pool = SimpleNamespace(
            _processes=slots, _cache={}, _maxtasksperchild=tasks, _on_ready_counters={}, _pool=[], _busy_workers=set()
        )
        if knows_children:
            self._pool._all_inqueues = set(range(slots))
        self.jobs = []
        self.maintained = 0

    def maintain_pool(self):
        self.maintained += 1

    @property
    def num_processes(self):
        return self._pool._processes

    def apply_async(self, target, args=(), callback=None, error_callback=None, **_options):
        if self.uses_semaphore:
            job = ApplyResult(self._pool._cache, callback, error_callback=error_callback)
            job._ack(None, 0.0, 1, None)
            self.jobs.append(job)
        else:
            self.jobs.append(partial(target, *args))

    def end(self, *, failing=False):
        job = self.jobs.pop(0)
        if self.uses_semaphore:
            job._set(None, (not failing, "lost" if failing else "done"))
        else:
            with suppress(ZeroDivisionError):
                job()

    def grow(self, number=1):
        self._pool._processes += number

    def shrink(self, number=1):
        self._pool._processes -= number


def controller(pool, *, use_eventloop=False):
    made = SimpleNamespace(pool=pool, use_eventloop=use_eventloop)
    callbacks = {"callback": lambda _result: None, "error_callback": lambda _result: None}
    made._process_task = lambda request: pool.apply_async(lambda: 1 / request, (), **callbacks)
    return made


def slots_with(pool, soon, *, use_eventloop=False, timers=None):
    timers = [] if timers is None else timers
    return slots_of(controller(pool, use_eventloop=use_eventloop), soon, lambda _seconds, call: timers.append(call))


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_the_slots_of_a_pool_are_counted(processes, failing):
    pool, called, soon = Pool(2, processes=processes), [], []
    slots = slots_with(pool, soon.append)
    assert isinstance(slots, ProcessSlots if processes else CountedSlots)
    slots.start(0 if failing else 1)
    slots.start(1)
    assert slots.free() == 0
    slots.when_free(lambda: called.append(1))
    slots.when_free(lambda: called.append(2))  # repeated calls count as one
    assert not soon
    pool.end(failing=failing)
    assert slots.free() == 1
    assert [callback() for callback in soon] == [None]
    assert called == [2]
    pool.end()
    assert slots.free() == 2
    assert len(soon) == 1


def test_in_the_event_loop_of_a_prefork_pool_the_callback_runs_at_once():
    pool, called = Pool(1, processes=True, knows_children=True), []
    slots = slots_with(pool, pytest.fail, use_eventloop=True)
    slots.start(1)
    slots.when_free(lambda: called.append(slots.free()))
    pool.end()
    assert called == [1]


def test_if_a_slot_is_free_the_callback_runs_soon():
    soon = []
    slots = slots_with(Pool(1), soon.append)
    slots.when_free(print)
    assert soon == [print]


def test_a_forgotten_callback_is_not_called():
    soon, pool = [], Pool(1)
    slots = slots_with(pool, soon.append)
    slots.start(1)
    slots.when_free(print)
    slots.forget()
    pool.end()
    assert not soon


def test_a_child_process_that_has_yet_to_start_is_no_slot():
    soon, timers, pool = [], [], Pool(2, processes=True, knows_children=True)
    slots = slots_with(pool, soon.append, timers=timers)
    pool._pool._all_inqueues = {1}
    slots.start(1)
    assert slots.free() == 0
    slots.when_free(print)
    assert len(timers) == 1
    timers.pop()()
    assert not soon
    assert len(timers) == 1  # it checks again
    pool._pool._all_inqueues.add(2)
    timers.pop()()
    assert soon == [print]
    assert not timers
    assert pool.maintained == 2


def test_a_child_process_that_has_run_all_its_tasks_is_no_slot_and_gets_no_job():
    pool = Pool(2, processes=True, knows_children=True, tasks=3)
    pool._pool._pool = [SimpleNamespace(pid=101, inqW_fd=0), SimpleNamespace(pid=102, inqW_fd=1)]
    pool._pool._on_ready_counters = {101: SimpleNamespace(value=2), 102: SimpleNamespace(value=3)}
    assert slots_with(pool, pytest.fail).free() == 1
    assert pool._pool._busy_workers == {1}, "Celery gives no job to a busy child"


class PoolLife:
    """What happens to a pool: its events, as methods."""

    def __init__(self, slots, *, processes, knows_children):
        self.pool, self.timers, self.running = Pool(slots, processes=processes, knows_children=knows_children), [], 0
        self.semaphore = LaxBoundedSemaphore(slots)
        self.children = self.pool._pool._all_inqueues if knows_children else None
        made = controller(self.pool)
        self.slots = slots_of(made, lambda callback: callback(), lambda _seconds, check: self.timers.append(check))
        self.slots.forget()
        self.waits = False
        self.grow, self.shrink = self.pool.grow, self.pool.shrink

    def start(self):
        if self.slots.free() > 0:
            self.slots.start(1)
            self.running += 1

    def end(self, *, failing=False):
        if self.running:
            self.pool.end(failing=failing)
            self.running -= 1

    def fail(self):
        self.end(failing=True)

    def release_once_more(self):  # as billiard does for a child that it replaces
        self.semaphore.release()

    def reconnect(self):  # as Celery does
        self.semaphore.clear()
        self.slots.forget()
        self.timers.clear()
        self.waits = False

    def end_child(self):
        if self.children and len(self.children) > self.running:
            self.children.pop()

    def start_child(self):
        if self.children is not None:
            self.children.add(object())

    def wait(self):
        """Wait for a slot, if there is none."""
        if self.slots.free() <= 0 and not self.waits:
            self.waits = True
            self.slots.when_free(self.on_free)

    def on_free(self):
        assert self.slots.free() > 0
        self.waits = False

    def check(self):
        if self.slots.free() > 0:
            for timer in self.timers[:]:
                self.timers.remove(timer)
                timer()
        able = self.pool.num_processes
        if self.children is not None:
            able = min(able, len(self.children))
        assert self.slots.free() == able - self.running
        assert not (self.waits and self.slots.free() > 0)


EVENTS = [
    *["start", "end"] * 2, "fail", "grow", "shrink", "release_once_more", "reconnect", "end_child", "start_child",
]  # fmt: skip


@pytest.mark.parametrize(
    ("processes", "knows_children"), [(False, False), (True, False), (True, True)], ids=["threads", "blocking", "loop"]
)
@given(events=st.lists(st.sampled_from(EVENTS), max_size=40), slots=st.integers(1, 4))
def test_free_slots_are_what_the_pool_can_run_less_the_jobs_that_have_not_ended(
    processes, knows_children, events, slots
):
    life = PoolLife(slots, processes=processes, knows_children=knows_children)
    for event in events:
        getattr(life, event)()
        life.check()
        life.wait()
