"""Queue of origin, from what each kind of broker says about a delivery."""

from __future__ import annotations

import pytest
from kombu import Exchange, Queue, binding

from bucketflow_celery.messages.origin import DELAYED_KEY_PREFIX, queue_of, queues_of

QUEUES = {
    queue.name: queue
    for queue in [
        Queue("celery", Exchange("celery"), "celery"),
        Queue("emails", Exchange("mail"), "send"),
        Queue("audit", Exchange("log", type="topic"), "order.*.paid"),
        Queue("everything", Exchange("all", type="topic"), "order.#"),
        Queue("news", Exchange("news", type="fanout"), ""),
        Queue("media", [binding(Exchange("media"), routing_key=key) for key in ("video", "image")]),
    ]
}
ZEROS = "0." * 27

CASES = [
    # delivery info, queue
    ({"consumer_tag": "2", "routing_key": "celery"}, "emails"),  # the consumer tag takes precedence
    ({"consumer_tag": "9", "routing_key": "celery"}, "celery"),  # the tag of an earlier connection is ignored
    ({"exchange": "", "routing_key": "celery"}, "celery"),  # Redis, and the default exchange
    ({"exchange": None, "routing_key": "celery"}, "celery"),
    ({"exchange": "mail", "routing_key": "send"}, "emails"),
    ({"exchange": "mail", "routing_key": "other"}, "other"),
    ({"exchange": "log", "routing_key": "order.eu.paid"}, "audit"),
    ({"exchange": "log", "routing_key": "order.eu.de.paid"}, "order.eu.de.paid"),
    ({"exchange": "all", "routing_key": "order.eu.de.paid"}, "everything"),
    ({"exchange": "all", "routing_key": "order"}, "everything"),  # "#" matches zero or more words
    ({"exchange": "all", "routing_key": "orders.eu"}, "orders.eu"),
    ({"exchange": "news", "routing_key": "ignored"}, "news"),
    ({"exchange": "media", "routing_key": "image"}, "media"),
    ({"exchange": "celery_delayed_27", "routing_key": f"{ZEROS}1.{DELAYED_KEY_PREFIX}emails"}, "emails"),
    ({"exchange": "celery_delayed_27", "routing_key": f"1.{ZEROS}{DELAYED_KEY_PREFIX}a.b"}, "a.b"),
    ({"routing_key": f"{DELAYED_KEY_PREFIX}emails"}, f"{DELAYED_KEY_PREFIX}emails"),  # a queue may have such a name
    ({}, ""),
    ({"routing_key": None}, ""),
]


@pytest.mark.parametrize(("delivery_info", "queue"), CASES)
def test_the_queue_of_a_message(delivery_info, queue):
    assert queue_of(delivery_info, {"1": "celery", "2": "emails"}, QUEUES) == queue


@pytest.mark.parametrize(
    ("delivery_info", "queues"),
    [
        ({"consumer_tag": "2", "exchange": "all", "routing_key": "order.1.paid"}, ["emails"]),
        ({"routing_key": "celery"}, ["celery"]),
        ({"routing_key": "unknown"}, []),
        ({"exchange": "mail", "routing_key": "other"}, []),
        ({"exchange": "both", "routing_key": "order.1.paid"}, ["first", "second"]),
    ],
)
def test_the_queues_a_message_may_have_been_delivered_from(delivery_info, queues):
    both = Exchange("both", type="topic")
    consumed = QUEUES | {"first": Queue("first", both, "order.#"), "second": Queue("second", both, "#.paid")}
    assert queues_of(delivery_info, {"2": "emails"}, consumed) == queues
