"""The watch that ends the countdowns of a pause, on Kombu's own timer and Celery's own signal."""

from __future__ import annotations

from time import monotonic

import pytest
from celery import signals
from celery.worker import request
from kombu.asynchronous.timer import Timer

from bucketflow_celery.scheduling.ticket import HEADER, Ticket
from bucketflow_celery.worker.deferred_requests import NEARLY_DUE
from bucketflow_celery.worker.pause_watch import CHECK_INTERVAL, PauseWatch


class Request(request.Request):
    """A request with a ticket, or without one. It has no message."""

    def __init__(self, paused=None, since=1.0, *, has_ticket=True):
        self._request_dict = {HEADER: Ticket({}, since, None, paused).write()} if has_ticket else {}


class Worker:
    """What the watch uses of a worker. ``check`` lets its callback run."""

    def __init__(self, *paused):
        self.timer, self.started, self.paused, self.refreshed = Timer(), [], set(paused), 0
        self.callbacks = []
        self.watch = PauseWatch(self, lambda: self.paused, self.refresh, lambda *call: self.callbacks.append(call))
        self.watch.start()

    def refresh(self):
        self.refreshed += 1

    def receive(self, request, countdown=600.0):
        """Receive *request*, as Celery's strategy does: announce it, then keep it until its ETA."""
        signals.task_received.send(sender=self, request=request)
        self.timer.call_at(monotonic() + countdown, self.started.append, (request,), priority=6)
        return request

    def check(self):
        seconds, callback = self.callbacks.pop()
        assert seconds == CHECK_INTERVAL
        callback()

    def due_entries(self):
        return [event for event in self.timer.queue if not event.entry.canceled]


@pytest.fixture
def worker():
    worker = Worker("tenant:a", "task:t")
    yield worker
    worker.watch.close()


def test_the_tasks_of_a_pause_start_once_it_has_ended_in_the_order_of_their_first_refusal(worker):
    second, first, other = (
        worker.receive(Request(*facts)) for facts in [("tenant:a", 20.0), ("tenant:a", 10.0), ("task:t", 5.0)]
    )
    worker.check()
    assert not worker.started
    worker.paused.discard("tenant:a")
    worker.check()
    assert worker.started == [first, second]
    assert [event.entry.args[0] for event in worker.due_entries()] == [other]
    worker.check()
    assert worker.started == [first, second]


def test_a_task_that_is_received_after_the_end_of_its_pause_starts_at_the_next_check(worker):
    request = worker.receive(Request("tenant:gone"))
    assert not worker.started, "Celery's timer does not know it yet when the signal is sent"
    worker.check()
    assert worker.started == [request]


def test_other_tasks_with_an_eta_keep_it(worker):
    worker.receive(Request())
    worker.receive(Request(has_ticket=False))
    worker.timer.call_after(600, print)
    assert not worker.callbacks
    assert len(worker.due_entries()) == 3


@pytest.mark.parametrize("countdown", [-1.0, NEARLY_DUE / 2])
def test_a_task_that_is_about_to_start_is_left_to_the_timer(worker, countdown):
    worker.receive(Request("tenant:gone"), countdown)
    worker.check()
    assert not worker.started
    assert len(worker.due_entries()) == 1


def test_the_limits_are_compared_while_a_task_waits_for_a_pause_and_no_longer(worker):
    request = worker.receive(Request("tenant:a"))
    for checks in range(1, 4):
        worker.check()
        assert worker.refreshed == checks
    worker.timer.clear()
    del request
    worker.check()
    assert not worker.callbacks, "no task waits"


def test_an_error_with_one_task_stops_no_other(worker):
    requests = [worker.receive(Request("tenant:a", since)) for since in (1.0, 2.0)]

    def fail(request):
        raise RuntimeError(request)

    worker.timer.queue[0].entry.fun = fail
    worker.paused.clear()
    worker.check()
    assert len(worker.started) == 1
    assert worker.started[0] in requests
    assert not worker.due_entries()


def test_a_closed_watch_does_nothing(worker):
    worker.receive(Request("tenant:a"))
    worker.watch.close()
    worker.paused.clear()
    worker.check()
    assert not worker.started
    assert not worker.callbacks
    worker.receive(Request("tenant:a"))
    assert not worker.callbacks


def test_a_watch_ignores_the_tasks_of_another_worker_of_the_process(worker):
    other = Worker("tenant:a")
    other.receive(Request("tenant:a"))
    assert not worker.callbacks
    other.watch.close()
