"""A task that fails without running ends as one that fails in a pool: judged by Celery's own ``trace_task``."""

from __future__ import annotations

from functools import partial

import pytest
from celery import chain, chord, current_task, group, signals
from celery.app.trace import trace_task
from celery_requests import app_in_memory, received, request_of, waiting_messages

from bucketflow_celery import ConfigError, CostExceedsCapacity, ThrottleTimeout
from bucketflow_celery.config.exemption import HEADER
from bucketflow_celery.worker.failure_hooks import call_hooks, info_of, store_failure

ERRORS = [
    ThrottleTimeout("tenant", 60.0, 1.0),
    CostExceedsCapacity("q:celery", 5.0, 1.0),
    ConfigError("tenant", None, "the name of a tenant"),
]
ERROR = ERRORS[0]


class App:
    """An app whose tasks fail, and what its hooks, signals and errbacks were called with."""

    def __init__(self):
        self.app = app_in_memory()
        self.calls = []
        self.raising = set()
        task, on_hook = partial(self.app.task, shared=False), self.on_hook

        class Watched(self.app.Task):
            def on_failure(self, *facts):
                on_hook("on_failure", self.request.called_directly, *facts[:-1], facts[-1].type)

            def after_return(self, *facts):
                on_hook("after_return", *facts)

        @task(name="work", base=Watched)
        def work(*_args, **_kwargs):
            raise ERROR

        @task(name="short")
        def short(task_id):
            raise AssertionError(task_id)

        @task(name="long")
        def long(request, error, traceback):
            on_hook("errback", request.id, request.args, error, type(traceback))

        for signal in (signals.task_failure, signals.task_postrun):
            signal.connect(self.on_signal, dispatch_uid=id(self))
        self.work, self.short, self.long = work, short, long

    def on_hook(self, name, *facts):
        self.calls.append((name, current_task.name, current_task.request.id, *facts))
        if name in self.raising:
            raise RuntimeError(name)

    def on_signal(self, sender, signal, **facts):
        if sender.app is self.app:
            names = ("task_id", "args", "kwargs", "exception", "retval", "state")
            self.on_hook(signal.name, sender.name, *map(facts.get, names))

    def close(self):
        for signal in (signals.task_failure, signals.task_postrun):
            signal.disconnect(dispatch_uid=id(self))

    def request(self, link_error=None, **options):
        return received(self.app, self.work.s(1, two=2), task_id="42", link_error=link_error, **options)

    def outcome(self, request):
        """Return all that users see: calls in order, published messages, and results."""
        ids = [request.id, *[step["options"]["task_id"] for step in request._context.chain or ()]]
        results = [self.app.backend.get_task_meta(task_id) for task_id in ids]
        published = [
            (message.headers["task"], message.payload[0], message.headers["parent_id"], message.headers["root_id"])
            for message in waiting_messages(self.app)
        ]
        return self.calls, published, [(meta["status"], repr(meta["result"])) for meta in results]


@pytest.fixture
def make_app():
    apps = []

    def make():
        apps.append(App())
        return apps[-1]

    yield make
    for app in apps:
        app.close()


def fail_in_pool(app, request):
    trace_task(app.work, request.id, request.args, request.kwargs, dict(vars(request._context)), app=app.app)


def fail_without_running(_app, request, error=ERROR):
    info = info_of(error)
    store_failure(request, error, info)
    call_hooks(request, error, info)


ERRBACKS = {
    "none": lambda _app: None,
    "signature of one argument": lambda app: app.short.s(),
    "signature without an app": lambda app: {**app.short.s(), "app": None},
    "function of three arguments": lambda app: app.long.s(),
    "several": lambda app: [app.long.s(), app.short.s(), app.short.si("other")],
    "immutable": lambda app: app.short.si("other"),
    "chain": lambda app: chain(app.short.si("first"), app.short.si("second")),
    "group": lambda app: group(app.short.si("first"), app.short.si("second")),
    "task that this worker does not have": lambda app: app.app.signature("elsewhere"),
}


@pytest.mark.parametrize("errback", ERRBACKS.values(), ids=ERRBACKS)
def test_errbacks_hooks_signals_and_results_are_those_of_a_failure_in_a_pool(make_app, errback):
    in_pool, without_running = make_app(), make_app()
    outcomes = []
    for app, fail in ((in_pool, fail_in_pool), (without_running, fail_without_running)):
        request = app.request(errback(app))
        fail(app, request)
        outcomes.append(app.outcome(request))
    assert outcomes[1] == outcomes[0]
    assert [name for name, *_ in outcomes[1][0]][-4:] == ["on_failure", "task_failure", "after_return", "task_postrun"]


def test_the_rest_of_a_chain_fails_with_it(make_app):
    in_pool, without_running = make_app(), make_app()
    outcomes = []
    for app, fail in ((in_pool, fail_in_pool), (without_running, fail_without_running)):
        later = app.short.s().set(task_id="43")
        request = received(app.app, chain(app.work.s(1, two=2).set(task_id="42"), later))
        fail(app, request)
        outcomes.append(app.outcome(request))
    assert outcomes[1] == outcomes[0]
    assert [status for status, _ in outcomes[1][2]] == ["FAILURE", "FAILURE"]


CHORD_ERRBACKS = {name: ERRBACKS[name] for name in ("none", "function of three arguments", "several", "chain")}


def header_of_chord(app, errback):
    body = app.short.s().set(task_id="body")
    if errback is not None:
        for one in errback if isinstance(errback, list) else [errback]:
            body.link_error(one)
    header = [app.work.s(1, two=2).set(task_id=task_id) for task_id in ("42", "43")]
    chord(header, body, app=app.app).apply_async()
    return [request_of(app.app, message) for message in waiting_messages(app.app)]


@pytest.mark.parametrize("errback", CHORD_ERRBACKS.values(), ids=CHORD_ERRBACKS)
def test_a_chord_fails_with_its_header_and_its_errbacks_are_called(make_app, errback):
    in_pool, without_running = make_app(), make_app()
    outcomes = []
    for app, fail in ((in_pool, fail_in_pool), (without_running, fail_without_running)):
        for request in header_of_chord(app, errback(app)):
            fail(app, request)
        calls, published, results = app.outcome(request)
        body = app.app.backend.get_task_meta("body")
        # The text of a chord's error ends with the id of a task, and its errbacks have the id of the chord.
        calls = [(name, *(type(fact) for fact in facts)) for name, *facts in calls]
        outcomes.append((calls, [sent[0] for sent in published], results, body["status"]))
    assert outcomes[1] == outcomes[0]
    assert outcomes[1][3] == "FAILURE"


def test_errbacks_of_a_chord_are_called_after_the_result_is_stored_and_are_exempt(make_app):
    app = make_app()
    requests = header_of_chord(app, [app.long.s(), app.short.s()])
    for request in requests:
        store_failure(request, ERROR, info_of(ERROR))
    assert [app.app.backend.get_state(request.id) for request in requests] == ["FAILURE", "FAILURE"]
    assert app.calls == []
    for request in requests:
        call_hooks(request, ERROR, info_of(ERROR))
    assert [name for name, *_ in app.calls].count("errback") == 1
    [message] = waiting_messages(app.app)
    assert message.headers[HEADER] is True


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_error_reaches_hooks_and_result_with_its_facts(make_app, error):
    app = make_app()
    request = app.request(app.long.s())
    fail_without_running(app, request, error)
    result = app.app.backend.get_result("42")
    assert (type(result).__name__, result.args) == (type(error).__name__, tuple(error.args))
    assert [call[3:] for call in app.calls if call[0] == "on_failure"] == [
        (False, error, "42", [1], {"two": 2}, type(error))
    ]


@pytest.mark.parametrize("raising", ["errback", "on_failure", "task_failure", "after_return", "task_postrun"])
def test_one_that_raises_does_not_keep_the_others_from_being_called(make_app, raising, caplog):
    app = make_app()
    app.raising.add(raising)
    fail_without_running(app, app.request([app.long.s(), app.short.s()]))
    assert [name for name, *_ in app.calls] == ["errback", "on_failure", "task_failure", "after_return", "task_postrun"]
    assert [message.headers["task"] for message in waiting_messages(app.app)] == ["short"]
    assert raising in caplog.text


def test_hooks_leave_no_current_task_behind(make_app):
    app = make_app()
    fail_without_running(app, app.request(app.long.s()))
    assert not current_task
    assert app.work.request_stack.top is None


@pytest.mark.parametrize(
    "errback", [errback for name, errback in ERRBACKS.items() if "three" not in name and name != "none"]
)
def test_errbacks_that_are_sent_as_tasks_are_exempt_from_max_wait(make_app, errback):
    app = make_app()
    fail_without_running(app, app.request(errback(app)))
    messages = waiting_messages(app.app)
    assert messages
    for message in messages:
        assert message.headers[HEADER] is True
        for step in message.payload[2]["chain"] or ():
            assert step["options"]["headers"] == {HEADER: True}


def test_tasks_that_an_errback_publishes_itself_are_not_exempt(make_app):
    app = make_app()

    @app.app.task(name="publishing", shared=False)
    def publishing(request, error, traceback):
        del request, error, traceback
        app.short.delay("other")

    fail_without_running(app, app.request(publishing.s()))
    [message] = waiting_messages(app.app)
    assert HEADER not in message.headers
