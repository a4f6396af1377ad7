"""Celery's signals reach all apps of a process: a throttle acts on those of its own app only, and ends with it."""

from __future__ import annotations

import gc
import weakref

import pytest
from celery import Celery, _state, current_app, signals

from bucketflow_celery import Throttle
from bucketflow_celery.config.rules import TaskRules
from bucketflow_celery.testing import MemoryStore
from bucketflow_celery.worker.revocation import RevocationHandler

SIGNALS = [signals.worker_init, signals.worker_process_init, signals.before_task_publish, signals.task_revoked]


def shop(name, *, tenant=None, throttled=True):
    """Return an app with the task ``sync``, whose messages go to the queue *name*."""
    app = Celery(name, set_as_current=False, broker="memory://")
    app.conf.update(task_default_queue=name, task_ignore_result=True)

    @app.task(name="sync", shared=False)
    def sync(account):
        return account

    if throttled:
        Throttle(app, store=MemoryStore(), tenant=tenant)
    return app


def published(app):
    """Return the headers of the messages that *app* has published since the last call."""
    with app.connection_for_read() as connection:
        found = []
        while (message := connection.default_channel.basic_get(app.conf.task_default_queue, no_ack=True)) is not None:
            found.append(message.headers)
        return found


def tenants(app):
    return [headers.get("tenant") for headers in published(app)]


WAYS = {
    "delay": lambda app: app.tasks["sync"].delay("acme"),
    "apply_async": lambda app: app.tasks["sync"].apply_async(("acme",), headers={"custom": 1}),
    "signature": lambda app: app.signature("sync", ("acme",)).apply_async(),
    "send_task": lambda app: app.send_task("sync", ("acme",)),
    "send_task by keyword": lambda app: app.send_task(name="sync", kwargs={"account": "acme"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_throttle_stamps_the_messages_of_its_own_app_only(way):
    ours, theirs, plain = shop("ours", tenant="account"), shop("theirs"), shop("plain", throttled=False)
    for app in (ours, theirs, plain):
        WAYS[way](app)
    assert [tenants(app) for app in (ours, theirs, plain)] == [["acme"], [None], [None]]


def test_two_throttles_stamp_by_their_own_rules():
    ours, theirs = shop("ours2", tenant="account"), shop("theirs2", tenant=lambda account: f"their {account}")
    for app in (ours, theirs, ours):
        app.send_task("sync", ("acme",))
    assert (tenants(ours), tenants(theirs)) == (["acme", "acme"], ["their acme"])


def test_a_message_that_another_app_publishes_meanwhile_is_not_stamped():
    ours, plain = shop("ours3", tenant="account"), shop("plain3", throttled=False)

    def audit(sender, **_):
        if sender == "sync":
            plain.send_task("audit", ("acme",))

    signals.before_task_publish.connect(audit)
    ours.send_task("sync", ("acme",))
    assert (tenants(ours), tenants(plain)) == (["acme"], [None])


def test_an_app_that_fails_to_publish_leaves_nothing_behind():
    ours, plain = shop("ours4", tenant="account"), shop("plain4", throttled=False)
    with pytest.raises(TypeError):
        ours.send_task("sync", "not a list")
    plain.send_task("sync", ("acme",))
    assert tenants(plain) == [None]


def test_the_current_app_may_be_given_as_celery_names_it(monkeypatch):
    app = shop("current", throttled=False)
    monkeypatch.setattr(_state._tls, "current_app", app)
    throttle = Throttle(current_app, store=MemoryStore(), tenant="account")
    app.send_task("sync", ("acme",))
    assert throttle.app is app
    assert tenants(app) == ["acme"]


def test_a_worker_of_another_app_is_not_checked():
    shop("ours5").conf.update(bucketflow_limits={"all": "fast"})
    theirs = shop("theirs5")

    class Worker:
        app = theirs

    assert not [answer for _, answer in signals.worker_init.send(sender=Worker()) if answer is not None]


def test_a_limit_for_maps_is_warned_of_when_a_worker_starts(caplog):
    app = shop("maps")
    app.conf.bucketflow_limits = {"tasks": {"celery.starmap": "1/s", "celery.backend_cleanup": "1/s"}}

    class Worker:
        pass

    Worker.app = app
    with caplog.at_level("WARNING", "bucketflow_celery.throttle"):
        signals.worker_init.send(sender=Worker)
    [line] = [record.getMessage() for record in caplog.records if "instead" in record.getMessage()]
    assert line.startswith("limits['tasks'] names celery.starmap, which passes")


def receivers(of=SIGNALS):
    return [len(signal._live_receivers(None)) for signal in of]


def test_a_worker_that_has_ended_leaves_no_receiver(monkeypatch):
    # A worker tells its process that no result may be waited for. Here other tests wait for some.
    monkeypatch.setattr(_state, "_task_join_will_block", _state._task_join_will_block)
    signals_of_workers = [signals.worker_shutting_down, signals.task_received]
    before = receivers(signals_of_workers)
    worker = shop("worked", tenant="account").WorkController(pool="solo")
    assert receivers(signals_of_workers) == [count + 1 for count in before]
    worker.consumer.shutdown()
    assert receivers(signals_of_workers) == before


def test_a_throttle_ends_with_its_app_and_leaves_no_receiver():
    gc.collect()
    before = receivers()
    app = shop("ended", tenant="account")
    RevocationHandler(app.bucketflow).connect()
    app.tasks["sync"].bucketflow = TaskRules(tenant="account", cost="account")
    app.send_task("sync", ("acme",))
    assert tenants(app) == ["acme"]
    assert receivers() == [count + 1 for count in before]
    gone = [weakref.ref(app), weakref.ref(app.bucketflow)]

    app.close()
    del app
    gc.collect()

    assert [ref() for ref in gone] == [None, None]
    assert receivers() == before


def test_a_throttle_without_another_reference_lives_as_long_as_its_app():
    app = shop("kept", tenant="account")
    gc.collect()
    app.send_task("sync", ("acme",))
    assert tenants(app) == ["acme"]
