"""How long a message may wait in a worker: what is configured, within the timeouts of its broker."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu import Queue

from bucketflow_celery.config.settings import Settings
from bucketflow_celery.worker.wait_limits import consumer_timeout_of, wait_limits, wait_limits_of

LIMITS = [
    # max_hold, max_countdown, visibility timeout, consumer timeout; the limits: held, countdown, unacknowledged
    (600, 900, inf, inf, (600, 900, inf)),
    (600, 900, inf, 1800, (600, 900, 1500)),  # RabbitMQ and all defaults
    (600, 900, 3600, inf, (600, 720, 900)),  # Redis and all defaults
    (600, 900, inf, 600, (200, 300, 500)),
    (600, 900, inf, 60, (20, 30, 50)),
    (5, 7, inf, 600, (5, 7, 500)),  # shorter ones stay
    (3000, 9000, inf, 1800, (600, 900, 1500)),
    (600, 900, inf, 86_400, (600, 900, 72_000)),
    (600, 900, 40, inf, (10, 8, 10)),
    (600, 900, 3600, 60, (20, 30, 50)),
]


@pytest.mark.parametrize(("max_hold", "max_countdown", "visibility", "consumer", "expected"), LIMITS)
def test_the_limits(max_hold, max_countdown, visibility, consumer, expected):
    assert wait_limits(max_hold, max_countdown, visibility, consumer) == pytest.approx(expected)


SECONDS = st.floats(0.1, 1e6)


@given(max_hold=SECONDS, max_countdown=SECONDS, visibility=SECONDS | st.just(inf), consumer=SECONDS | st.just(inf))
def test_no_wait_exceeds_what_is_configured_or_a_timeout(max_hold, max_countdown, visibility, consumer):
    limits = wait_limits(max_hold, max_countdown, visibility, consumer)
    assert 0 < limits.max_hold <= max_hold
    assert 0 < limits.max_countdown <= max_countdown
    # A message that returned may have waited for its ETA here, before it is held.
    longest = max(limits.max_hold, limits.max_countdown)
    assert longest <= limits.max_unacknowledged
    assert limits.max_unacknowledged <= 0.84 * min(visibility, consumer)


QUEUES = [
    # x-consumer-timeout of a queue, and of its consumer, in ms; the option in seconds; expected in seconds
    (None, None, 1800.0, 1800.0),
    (60_000, None, 1800.0, 60.0),
    (None, 60_000, 1800.0, 60.0),
    (90_000, 60_000, 1800.0, 60.0),
    (3_600_000, None, 1800.0, 1800.0),  # another queue of the worker has the server's
    (60_000, None, 30.0, 30.0),
    (60_000.0, None, 1800.0, 60.0),
    ("60000", None, 1800.0, 1800.0),  # what RabbitMQ would not accept
    (0, None, 1800.0, 1800.0),
]


@pytest.mark.parametrize(("of_queue", "of_consumer", "option", "expected"), QUEUES)
def test_the_shortest_timeout_of_the_consumed_queues_counts(of_queue, of_consumer, option, expected):
    arguments = [None if value is None else {"x-consumer-timeout": value} for value in (of_queue, of_consumer)]
    queues = [Queue("plain"), Queue("declared", queue_arguments=arguments[0], consumer_arguments=arguments[1])]
    assert consumer_timeout_of(queues, Settings(consumer_timeout=option)) == expected


def test_a_queue_that_declares_a_longer_timeout_than_the_server_has_that_one():
    queue = Queue("patient", queue_arguments={"x-consumer-timeout": 3_600_000})
    assert consumer_timeout_of([queue], Settings()) == 3600.0
    assert consumer_timeout_of([], Settings()) == 1800.0


@pytest.mark.parametrize(
    ("driver", "visibility", "expected"),
    [("amqp", None, (20, 30, 50)), ("redis", 3600, (600, 720, 900)), ("memory", None, (600, 900, inf))],
)
def test_only_rabbitmq_has_a_consumer_timeout(driver, visibility, expected):
    channel = SimpleNamespace(**({} if visibility is None else {"visibility_timeout": visibility}))
    connection = SimpleNamespace(default_channel=channel, transport=SimpleNamespace(driver_type=driver))
    app = SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={"q": Queue("q")})))
    settings = Settings(consumer_timeout=60.0)
    assert wait_limits_of(SimpleNamespace(connection=connection, app=app), settings) == expected
