"""Callbacks come at their time, also those that are asked for while the alarm sleeps."""

from __future__ import annotations

import threading
import time

from bucketflow_celery.worker.event_loop import TimerThread

LONG = 60.0


def test_what_is_nearer_comes_first_and_not_when_the_alarm_would_have_woken():
    alarm, rung, order = TimerThread(), threading.Event(), []
    late = alarm.call_after(LONG, rung.set)
    time.sleep(0.05)  # it sleeps now, until then
    alarm.call_after(0.02, lambda: order.append("later"))
    alarm.call_after(0.01, lambda: order.append("sooner"))
    alarm.call_after(0.03, rung.set)
    assert rung.wait(LONG / 2)
    assert order == ["sooner", "later"]
    alarm.cancel(late)


def test_who_is_cancelled_is_not_called_and_may_be_cancelled_again():
    alarm, rung, called = TimerThread(), threading.Event(), []
    event = alarm.call_after(0.01, lambda: called.append(True))
    alarm.cancel(event)
    alarm.cancel(event)
    alarm.call_after(0.02, rung.set)
    assert rung.wait(LONG)
    assert not called


def test_a_callback_that_fails_stops_no_other(caplog):
    alarm, rung = TimerThread(), threading.Event()

    def fail():
        raise ValueError("mine")

    alarm.call_after(0, fail)
    alarm.call_after(0.01, rung.set)
    assert rung.wait(LONG)
    assert "timer callback failed" in caplog.text
