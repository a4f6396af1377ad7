"""The broker's refusals of copies: one warning and one try every five minutes, not one for each task."""

from __future__ import annotations

from types import SimpleNamespace

import amqp.exceptions as amqp
import pytest
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError

from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.worker.celery_worker import CeleryWorker
from bucketflow_celery.worker.copy_refusals import RETRY_AFTER, CopyRefusals, is_permanent

ERRORS = [
    # error, whether the broker would refuse the same copy again
    (amqp.AccessRefused("access to exchange 'amq.default' refused", (60, 40), reply_code=403), True),
    (amqp.NotFound("no exchange 'celery_delayed_27'", (60, 40), reply_code=404), True),
    (
        amqp.PreconditionFailed("message size 200 is larger than max size 100", (60, 40), reply_code=406),
        True,
    ),
    (amqp.ContentTooLarge("too large", (60, 40), reply_code=311), True),
    (amqp.NotAllowed("access to vhost refused", (10, 40), reply_code=530), True),
    (amqp.AMQPNotImplementedError("no such feature", (60, 40), reply_code=540), True),
    (amqp.AccessRefused("login was refused"), True),
    (NoPermissionError("this user has no permissions to run the 'lpush' command"), True),
    (amqp.ConnectionForced("broker forced connection closure", (0, 0), reply_code=320), False),
    (amqp.InternalError("internal error", (0, 0), reply_code=541), False),
    (amqp.ResourceError("no memory", (0, 0), reply_code=506), False),
    (amqp.RecoverableConnectionError("connection already closed"), False),
    (amqp.MessageNacked("a full queue that rejects"), False),
    (OperationalError("refused"), False),
    (ConnectionResetError("reset"), False),
    (TimeoutError("no confirm"), False),
    (OutOfMemoryError("command not allowed when used memory > 'maxmemory'"), False),
    (ReadOnlyError("You can't write against a read only replica"), False),
    (ResponseError("MISCONF"), False),
]
PERMANENT = [error for error, permanent in ERRORS if permanent]
ACCESS, TOO_LARGE, LOST = ERRORS[0][0], ERRORS[2][0], ConnectionResetError("reset")


@pytest.mark.parametrize(("error", "expected"), ERRORS, ids=lambda value: repr(value)[:40])
def test_what_the_broker_refuses_for_good(error, expected):
    assert is_permanent(error) is expected


class Broker:
    """Implements what a worker needs of the republisher. Raises *error* for bodies of *from_size* bytes or more."""

    delayed = False

    def __init__(self):
        self.error, self.from_size = None, 0
        self.tries = self.connections = 0
        self.is_open = False

    def publish(self, message, _queue, _countdown, _ticket, _lead=0.0):
        self.tries += 1
        self.connections += not self.is_open
        self.is_open = True
        if self.error is not None and len(message.body) >= self.from_size:
            raise self.error

    def messages_in(self, _queue):
        return 0

    def close(self):
        self.is_open = False


@pytest.fixture
def broker():
    return Broker()


@pytest.fixture
def now():
    """Return a list whose item is the time in seconds."""
    return [1000.0]


@pytest.fixture
def defer(broker, now, caplog):
    """Return a function that defers a task of *queue*, and returns whether it was accepted."""
    caplog.set_level("WARNING")
    queue = SimpleNamespace(exchange=None)
    app = SimpleNamespace(amqp=SimpleNamespace(queues={"q": queue, "other": queue}))
    waker = SimpleNamespace(timer=SimpleNamespace(call_after=None), call_soon=None)
    slots, window = SimpleNamespace(free=None, when_free=None), SimpleNamespace(widen=None, narrow=None)
    window.can_hold_many, window.hold_limit = True, 500
    worker = CeleryWorker(SimpleNamespace(app=app), slots, window, broker, waker, None)
    worker._copy_refusals = CopyRefusals(lambda: now[0])
    worker.acknowledge = lambda _request: None

    def defer(queue="q", size=10):
        message = SimpleNamespace(body=b"x" * size, headers={"task": "f"})
        task = PendingTask(SimpleNamespace(id="42", message=message), queue, 0.0)
        accepted = worker.defer(task, 1.0)
        assert accepted or worker.can_defer(task) is (not is_permanent(broker.error))
        return accepted

    return defer


@pytest.mark.parametrize("error", PERMANENT, ids=lambda value: repr(value)[:40])
def test_a_hundred_tasks_cost_one_try_one_connection_and_one_warning(defer, broker, caplog, error):
    broker.error = error
    assert not any(defer() for _ in range(100))
    assert (broker.tries, broker.connections) == (1, 1)
    assert caplog.text.count("broker refuses deferred tasks, they are held instead: queue=q") == 1
    assert len(caplog.records) == 1


def test_a_connection_that_is_lost_is_tried_for_each_task(defer, broker, caplog):
    broker.error = LOST
    assert not any(defer() for _ in range(10))
    assert broker.tries == 10
    assert caplog.text.count("broker did not accept deferred task, it stays held: id=42") == 10


def test_after_some_minutes_another_copy_is_tried_without_another_warning(defer, broker, now, caplog):
    broker.error = ACCESS
    for _ in range(3):
        assert not any(defer() for _ in range(10))
        now[0] += RETRY_AFTER
    assert broker.tries == 3
    assert len(caplog.records) == 1


def test_once_a_copy_is_accepted_all_are_and_a_new_refusal_warns_again(defer, broker, now, caplog):
    broker.error = ACCESS
    defer()
    broker.error = None
    now[0] += RETRY_AFTER
    assert all(defer() for _ in range(10))
    broker.error = ACCESS
    assert not any(defer() for _ in range(10))
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "broker refuses deferred tasks, they are held instead",
        "broker accepts deferred tasks again",
        "broker refuses deferred tasks, they are held instead",
    ]


def test_a_queue_whose_copies_are_refused_is_no_hindrance_for_others(defer, broker, caplog):
    broker.error = ACCESS
    assert not defer("q")
    broker.error = None
    assert defer("other")
    broker.error = ACCESS
    assert not defer("other")
    assert len(caplog.records) == 2


def test_where_only_large_messages_are_refused_smaller_ones_are_deferred(defer, broker, now, caplog):
    broker.error, broker.from_size = TOO_LARGE, 100
    assert not defer(size=120)
    assert defer(size=99)
    assert not defer(size=100)
    assert not defer(size=110)
    assert broker.tries == 3
    assert len(caplog.records) == 1
    broker.error = None
    now[0] += RETRY_AFTER
    assert defer(size=99)
    assert len(caplog.records) == 1
    assert defer(size=100)
    assert "accepts deferred tasks again" in caplog.records[-1].getMessage()
