"""The header that exempts a task from ``max_wait``."""

from __future__ import annotations

import pytest
from celery import chain, chord, group, signature
from celery_requests import app_in_memory, received, waiting_messages

from bucketflow_celery import Throttle
from bucketflow_celery.config.exemption import HEADER, exempted, has_errbacks, with_exempt_errbacks
from bucketflow_celery.testing import MemoryStore


@pytest.fixture
def app():
    app = app_in_memory()
    app.task(name="work", shared=False)(work)
    return app


def work(*_args):
    """Never runs."""


def in_canvas(one):
    return {
        "signature": one("a"),
        "chain": chain(one("a"), one("b")),
        "group": group(one("a"), one("b")),
        "chord": chord([one("a"), one("b")], one("c")),
        "chain of groups": chain(one("a"), group(one("b"), one("c"))),
    }


@pytest.mark.parametrize("form", list(in_canvas(signature)))
def test_every_task_of_a_signature_is_exempt_and_the_signature_itself_is_unchanged(app, form):
    canvas = in_canvas(lambda argument: app.signature("work", (argument,), immutable=True, app=app))[form]
    before = repr(dict(canvas))
    app.signature(exempted(canvas)).apply_async()
    assert repr(dict(canvas)) == before
    for message in waiting_messages(app):
        assert message.headers[HEADER] is True
        nested = [*(message.payload[2]["chain"] or ()), *filter(None, [message.payload[2]["chord"]])]
        assert all(str(step).count(HEADER) for step in nested)


def test_other_headers_and_options_are_kept(app):
    one = app.signature("work", app=app).set(headers={"tenant": "acme"}, priority=3)
    app.signature(exempted(one)).apply_async()
    [message] = waiting_messages(app)
    assert (message.headers["tenant"], message.headers[HEADER], message.properties["priority"]) == ("acme", True, 3)


@pytest.mark.parametrize(("headers", "max_wait"), [({}, 5.0), ({HEADER: True}, None), ({HEADER: False}, 5.0)])
def test_an_exempt_task_has_no_max_wait(app, headers, max_wait):
    throttle = Throttle(app, store=MemoryStore(), limits={"queues": {"*": "1/m"}}, max_wait=5.0)
    request = received(app, app.tasks["work"].s(), headers=headers)
    policy = throttle.active_limits.resolve(request.task, request.request_dict, request.args, request.kwargs, "q")
    assert (policy.max_wait, len(policy.path)) == (max_wait, 1)


def test_errbacks_are_found_and_exempt_at_any_depth_and_the_tasks_are_not(app):
    def one():
        return app.signature("work", app=app)

    plain = chain(one(), chord([one(), one()], group(one(), one())))
    assert not has_errbacks(plain)
    assert not has_errbacks(None)
    failing = chain(one(), chord([one(), one()], group(one(), one().on_error(one()))))
    assert has_errbacks(failing)
    assert str(with_exempt_errbacks(failing)).count(HEADER) == 1
    assert str(with_exempt_errbacks(plain)).count(HEADER) == 0
    member = one().set(chord=dict(one().on_error(one())))
    assert with_exempt_errbacks(member)["options"]["chord"]["options"]["link_error"][0]["options"] == {
        "headers": {HEADER: True}
    }
