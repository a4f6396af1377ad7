"""Failed tasks end in threads of their own: in order, bounded, and acknowledged only once their failure is stored."""

from __future__ import annotations

import logging
import threading
from types import SimpleNamespace

import pytest
from celery.backends.base import DisabledBackend
from celery_requests import app_in_memory, received
from kombu.exceptions import EncodeError
from waiting import until

from bucketflow_celery import ConfigError, CostExceedsCapacity, Limit, ThrottleTimeout
from bucketflow_celery.admission.pending_task import PendingTask
from bucketflow_celery.config.levels import Level, ThrottlePolicy
from bucketflow_celery.worker import failures
from bucketflow_celery.worker.failures import FailedTask, FailureService

ERROR = ThrottleTimeout("tenant", 60.0, 1.0)
NO_LIMITS = ThrottlePolicy(())


class Gate:
    """Where a thread waits until the test opens it."""

    def __init__(self):
        self._open = threading.Event()
        self._open.set()
        self.reached = threading.Event()

    def close(self):
        self._open.clear()
        self.reached.clear()

    def open(self):
        self._open.set()

    def __call__(self):
        self.reached.set()
        self._open.wait()


class Backend(DisabledBackend):
    """A result backend that can hang or be away."""

    def __init__(self, app):
        super().__init__(app)
        self.stored = []
        self.threads = set()
        self.gate = Gate()
        self.error = None

    def mark_as_failure(self, task_id, error, _traceback, **_):
        self.threads.add(threading.get_ident())
        self.gate()
        if self.error is not None:
            raise self.error
        self.stored.append((task_id, error))


class World:
    """A service, the callbacks that its worker's loop is to run, and what became of the tasks."""

    def __init__(self):
        self.callbacks = []
        self.ended = []  # id, and whether its failure is stored
        self.hooked = []
        self.hook_threads = set()
        self.hook_gate = Gate()
        self.service = FailureService(self.callbacks.append)
        self.app = app = app_in_memory()
        self.backend = Backend(app)
        world = self

        class Watched(app.Task):
            backend = self.backend

            def on_failure(self, _error, task_id, *_):
                world.hook_threads.add(threading.get_ident())
                world.hook_gate()
                world.hooked.append(task_id)

        @app.task(name="work", shared=False, base=Watched)
        def work():
            raise AssertionError

        self.work = work

    def fail(self, *ids, is_parked=False, error=ERROR, policy=NO_LIMITS, waited=0.0):
        for task_id in ids:
            request = received(self.app, self.work.s(), task_id=task_id)
            request.is_parked = is_parked
            self.service.add(FailedTask(PendingTask(request, "q", 0.0, policy=policy), error, waited, self._on_end))

    def _on_end(self, failed, is_stored):
        self.ended.append((failed.request.id, is_stored))

    def run_loop(self):
        while self.callbacks:
            self.callbacks.pop(0)()

    def wait_ended(self, number):
        def have_ended():
            self.run_loop()
            return len(self.ended) >= number

        until(have_ended)

    def wait_hooked(self, number):
        until(lambda: len(self.hooked) >= number)


@pytest.fixture
def world():
    world = World()
    yield world
    world.backend.error = None
    world.backend.gate.open()
    world.hook_gate.open()
    world.service.close(10)


def test_results_are_stored_and_hooks_called_in_order_and_outside_of_the_loop(world):
    ids = [str(number) for number in range(20)]
    world.fail(*ids)
    world.wait_ended(20)
    world.wait_hooked(20)
    assert world.backend.stored == [(task_id, ERROR) for task_id in ids]
    assert world.ended == [(task_id, True) for task_id in ids]
    assert world.hooked == ids
    assert len(world.backend.threads) == len(world.hook_threads) == 1
    assert threading.get_ident() not in world.backend.threads | world.hook_threads


def test_a_task_ends_only_after_its_failure_is_stored(world):
    world.backend.gate.close()
    world.fail("1")
    world.backend.gate.reached.wait()
    world.run_loop()
    assert world.ended == []
    world.backend.gate.open()
    world.wait_ended(1)
    assert world.ended == [("1", True)]


def test_a_hook_that_blocks_delays_neither_results_nor_acknowledgements(world):
    world.hook_gate.close()
    world.fail("1", "2", "3")
    world.hook_gate.reached.wait()
    world.wait_ended(3)
    assert [task_id for task_id, _ in world.backend.stored] == ["1", "2", "3"]
    assert world.hooked == []


def test_the_number_of_tasks_that_wait_for_their_hooks_is_bounded(monkeypatch, caplog):
    monkeypatch.setattr(failures, "MAX_WAITING_HOOKS", 3)
    world = World()
    world.hook_gate.close()
    world.fail(*map(str, range(10)))
    until(lambda: "hooks of failed tasks are too slow" in caplog.text)
    world.wait_ended(4)  # one whose hook runs, and three that wait
    assert len(world.ended) == 4
    world.hook_gate.open()
    world.wait_ended(10)
    world.wait_hooked(10)
    assert caplog.text.count("hooks of failed tasks are too slow") == 1


def test_while_the_result_backend_is_away_all_tasks_go_back_after_few_attempts_and_fail_later(world, caplog):
    world.backend.error = OSError("away")
    world.backend.gate.close()
    world.fail("1", "2", "3")
    world.backend.gate.reached.wait()
    world.backend.gate.open()
    world.wait_ended(3)
    assert world.ended == [("1", False), ("2", False), ("3", False)]
    assert world.hooked == []
    assert caplog.text.count("failure of task cannot be stored") == 1  # the others are not attempted
    assert world.service.pause == 1
    assert not world.service.is_ready

    world.backend.error = None
    until(lambda: world.service.is_ready)
    world.fail("1", "2", "3")
    world.wait_ended(6)
    assert world.ended[3:] == [("1", True), ("2", True), ("3", True)]


def test_a_failure_that_no_result_can_describe_ends_the_task_as_in_celery(world):
    world.backend.error = EncodeError("not serializable")
    world.fail("1")
    world.wait_ended(1)
    world.wait_hooked(1)
    assert world.ended == [("1", True)]


def test_after_a_lost_connection_the_broker_has_the_tasks_and_they_fail_there(world):
    world.backend.gate.close()
    world.fail("1", "2")
    world.fail("parked", is_parked=True)
    world.backend.gate.reached.wait()
    assert [task.request.id for task in world.service.withdraw(0.0)] == ["1", "2"]
    world.backend.gate.open()
    world.wait_ended(1)
    world.wait_hooked(1)
    assert world.ended == [("parked", True)]  # no broker has it
    assert world.hooked == ["parked"]


def test_a_worker_that_shuts_down_waits_for_results_that_are_on_their_way(world):
    world.fail("1", "2", "3")
    assert world.service.withdraw(10.0) == []
    assert world.ended == [("1", True), ("2", True), ("3", True)]


def test_a_worker_that_shuts_down_does_not_wait_longer_for_a_result_backend_that_hangs(world):
    world.backend.gate.close()
    world.fail("1", "2")
    assert [task.request.id for task in world.service.withdraw(0.01)] == ["1", "2"]


def test_a_worker_that_shuts_down_does_not_wait_longer_for_a_hook_that_hangs(world, caplog):
    world.hook_gate.close()
    world.fail("1", "2", "3")
    world.hook_gate.reached.wait()
    world.service.close(0.01)
    assert world.ended == [("1", True), ("2", True), ("3", True)]
    [line] = [record.getMessage() for record in caplog.records if "worker ends" in record.getMessage()]
    assert line.endswith("ids=2, 3")


def test_an_error_in_the_loop_keeps_no_other_task_from_its_end(world, caplog):
    calls = []

    def raising(failed, _is_stored):
        calls.append(failed.request.id)
        raise OSError(failed.request.id)

    world._on_end = raising
    world.fail("1", "2")
    until(lambda: len(world.callbacks) == 2)
    world.run_loop()
    assert calls == ["1", "2"]
    assert caplog.text.count("failed task cannot be acknowledged") == 2


TENANT = Level("tenant", "q:q/t:acme", Limit(1, 1))
POLICY = ThrottlePolicy((Level("queue", "q:q", Limit(10, 1)), TENANT), tenant="acme")
LINES = {
    "timeout": (ERROR, POLICY, "tenant=acme level=tenant wait=60.000 s error=ThrottleTimeout: the tenant limit"),
    "cost": (
        CostExceedsCapacity("q:q/t:acme", 5.0, 1.0),
        POLICY,
        "tenant=acme level=tenant wait=2.500 s error=CostExceedsCapacity: q:q/t:acme: 5 token(s)",
    ),
    "configuration": (
        ConfigError("cost", None, "a number"),
        NO_LIMITS,
        "tenant=- level=- wait=2.500 s error=ConfigError: cost is None",
    ),
}


@pytest.mark.parametrize(("error", "policy", "line"), LINES.values(), ids=LINES)
def test_each_failed_task_is_one_warning_with_task_id_tenant_level_and_wait(world, caplog, error, policy, line):
    caplog.set_level(logging.INFO)
    world.fail("1", "2", error=error, policy=policy, waited=2.5)
    world.wait_ended(2)
    warnings = [record for record in caplog.records if record.name == "bucketflow_celery.worker"]
    assert [record.levelname for record in warnings] == ["WARNING", "WARNING"]
    for task_id, record in zip("12", warnings, strict=True):
        assert record.getMessage().startswith(f"task failed without running: task=work id={task_id} {line}")


def test_a_tenant_that_the_message_names_is_logged_though_the_policy_is_unknown(world, caplog):
    request = received(world.app, world.work.s(), task_id="1", headers={"tenant": "acme"})
    world.service.add(FailedTask(PendingTask(request, "q", 0.0), ConfigError("cost", 1, "2"), 0.0, world._on_end))
    world.wait_ended(1)
    assert "id=1 tenant=acme level=-" in caplog.text


def test_no_thread_runs_before_the_first_failure():
    before = threading.active_count()
    service = FailureService(SimpleNamespace)
    service.close(0.0)
    assert service.withdraw(0.0) == []
    assert threading.active_count() == before
