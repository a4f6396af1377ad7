"""A worker's start: a mistake in the URL that only the server knows ends it with a sentence; an outage does not."""

from __future__ import annotations

from functools import partial

import pytest
from celery import Celery, signals
from processes import free_port
from servers import RedisServer

from bucketflow.errors import StoreAccessDenied, StoreUnavailable
from bucketflow_celery import Throttle


def start(url):
    """Send the signal with which Celery starts a worker."""
    app = Celery("shop", broker="memory://", set_as_current=False)
    throttle = Throttle(app, url=url, limits={"all": "1/s"})
    signals.worker_init.send(sender=type("Worker", (), {"app": app}))
    return throttle


def server_with(directory, options):
    """Return a server; its password is set once it is known to run."""
    password = options[1] if "--requirepass" in options else None
    cluster = ["--cluster-port", free_port()] if "--cluster-enabled" in options else []
    server = RedisServer.start(directory, args=[] if password else [*options, *cluster])
    if password:
        server.client().config_set("requirepass", password)
    return server


MISTAKES = [
    # options of the server, its URL, what the error says
    (["--requirepass", "right"], "redis://127.0.0.1:{port}/0", "the user and the password that the server knows"),
    (["--requirepass", "right"], "redis://127.0.0.1:{port}/0?protocol=2", "the user and the password"),
    (["--requirepass", "right"], "redis://:zqx@127.0.0.1:{port}/0", "the user and the password that the server knows"),
    ([], "redis://127.0.0.1:{port}/99", "the number of a database that the server has"),
    ([], "redis://127.0.0.1:{port}/99999999999", "the number of a database that the server has"),
    ([], "redis+cluster://127.0.0.1:{port}", "redis:// in place of redis+cluster://"),
    ([], "sentinel://127.0.0.1:{port}?master_name=m", "the addresses of sentinels"),
    (["--cluster-enabled", "yes"], "redis://127.0.0.1:{port}/1", "redis+cluster:// or no database number"),
]


@pytest.mark.parametrize(("options", "url", "said"), MISTAKES)
def test_a_mistake_that_only_the_server_knows_ends_the_worker_with_a_sentence(tmp_path, options, url, said):
    with server_with(tmp_path, options) as server, pytest.raises(SystemExit) as ended:
        start(url.format(port=server.port))
    first, sentence = str(ended.value).splitlines()
    assert first == "bucketflow cannot start:"
    assert sentence.startswith("url is ")
    assert said in sentence
    assert "zqx" not in sentence


def error_of(call):
    try:
        call()
    except StoreUnavailable as error:
        return error
    return None


STATES = {
    "a replica": {"replicaof": ("127.0.0.1", 1)},
    "without enough replicas": {"min-replicas-to-write": 1},
    "out of memory": {"maxmemory": 1},
}


@pytest.mark.parametrize("parks", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_a_server_that_takes_no_writes_is_no_missing_right(fresh_redis, state, parks):
    with fresh_redis.client() as admin:
        for name, value in STATES[state].items():
            if name == "replicaof":
                admin.replicaof(*value)
            else:
                admin.config_set(name, value)
    throttle = start(fresh_redis.url)
    assert not isinstance(error_of(partial(throttle.store.check_access, parks=parks)), StoreAccessDenied)
