"""``TimerThread`` runs callbacks in time, also those that are added while it sleeps."""

from __future__ import annotations

import threading
import time

from bucketflow_celery.worker.event_loop import TimerThread

LONG = 60.0


def test_a_nearer_callback_added_while_the_timer_sleeps_runs_in_time():
    timer, done, order = TimerThread(), threading.Event(), []
    late = timer.call_after(LONG, done.set)
    time.sleep(0.05)  # now it sleeps until then
    timer.call_after(0.02, lambda: order.append("later"))
    timer.call_after(0.01, lambda: order.append("sooner"))
    timer.call_after(0.03, done.set)
    assert done.wait(LONG / 2)
    assert order == ["sooner", "later"]
    timer.cancel(late)


def test_a_cancelled_callback_does_not_run_and_cancelling_twice_is_allowed():
    timer, done, called = TimerThread(), threading.Event(), []
    event = timer.call_after(0.01, lambda: called.append(True))
    timer.cancel(event)
    timer.cancel(event)
    timer.call_after(0.02, done.set)
    assert done.wait(LONG)
    assert not called


def test_a_failed_callback_is_logged_and_the_next_one_runs(caplog):
    timer, done = TimerThread(), threading.Event()

    def fail():
        raise ValueError("from the callback")

    timer.call_after(0, fail)
    timer.call_after(0.01, done.set)
    assert done.wait(LONG)
    assert "timer callback failed" in caplog.text
