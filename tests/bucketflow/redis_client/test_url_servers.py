"""Buckets at a URL: a socket, TLS, sentinels and a cluster, on real servers, for threads and coroutines."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
import subprocess
from urllib.parse import quote

import pytest
import redis
from processes import free_port, wait_until
from servers import RedisCluster, RedisSentinel, RedisServer, redis_executable

from bucketflow import ConfigError, StoreUnavailable
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.private_clients import ASYNC, SYNC
from bucketflow.redis_client.url import parse_url
from bucketflow.redis_client.url_clients import client_at

SLOW = 0.001  # tokens per second: no refill during a test


def consumed(url):
    """Consume from one bucket at *url*, in a thread and in a coroutine; return the tokens that are left of five."""

    async def consume():
        bucket = AsyncRedisTokenBucket(url=url, key="shop", capacity=5, fill_rate=SLOW)
        assert await bucket.consume()
        await bucket.close()

    bucket = RedisTokenBucket(url=url, key="shop", capacity=5, fill_rate=SLOW)
    assert bucket.consume()
    asyncio.run(consume())
    left = round(bucket.tokens)
    bucket.close()
    return left


@pytest.mark.parametrize(("path", "number"), [("", 0), ("/", 0), ("/3", 3), ("?db=3", 3), ("?virtual_host=3", 3)])
def test_the_number_in_a_url_is_that_of_the_database(redis_server, redis_client, path, number):
    redis_client.flushall()
    url = f"redis://127.0.0.1:{redis_server.port}{path}"
    assert consumed(url) == 3
    with redis_server.client(db=number) as client:
        assert client.keys() == [b"bucketflow:{shop}"]


def test_buckets_of_one_url_share_their_connections(redis_server, redis_client):
    before = len(redis_client.client_list())
    root, other = (
        RedisTokenBucket(url=redis_server.url, key=key, capacity=5, fill_rate=1) for key in ("root", "other")
    )
    leaf = RedisTokenBucket(url=redis_server.url, key="leaf", capacity=3, fill_rate=1, parent=root)
    assert leaf.consume(2)
    assert other.consume()
    assert len(redis_client.client_list()) <= before + 1


def test_a_socket(tmp_path):
    path = f"/tmp/bucketflow-url-{os.getpid()}.sock"
    with RedisServer.start(tmp_path / "unix", args=["--unixsocket", path]) as server:
        for number, scheme in enumerate(("unix", "socket", "redis+socket")):
            assert consumed(f"{scheme}://{path}?db={number}") == 3
            with server.client(db=number) as client:
                assert client.dbsize() == 1


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Yield the folder of an authority and of a server's certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    new += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run(new, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def tls_port(tmp_path_factory, certificates):
    """Yield the port at which a server speaks TLS."""
    tried = subprocess.run(
        [redis_executable(), "--tls-port", "0", "--nonsense", "1"], capture_output=True, text=True, check=False
    )
    if "tls-port" in tried.stdout + tried.stderr:  # it complains of the first option that it does not know
        pytest.skip("the server was built without TLS")
    port, cert, key = free_port(), certificates / "cert.pem", certificates / "key.pem"
    args = ["--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
    with RedisServer.start(tmp_path_factory.mktemp("tls"), args=[*args, "--tls-auth-clients", "no"]):
        yield port


@pytest.mark.parametrize(
    "flag", ["CERT_NONE", "none", "CERT_REQUIRED&ssl_ca_certs={}", "CERT_OPTIONAL&ssl_ca_certs={}"]
)
def test_tls(tls_port, certificates, flag):
    query = flag.format(quote(str(certificates / "cert.pem"), safe=""))
    url = f"rediss://127.0.0.1:{tls_port}/1?ssl_cert_reqs={query}"
    with redis_at(url) as client:
        client.flushdb()
    assert consumed(url) == 3


def redis_at(url):
    return client_at(SYNC, parse_url(url))


def test_tls_that_cannot_verify_the_server_is_refused(tls_port):
    bucket = RedisTokenBucket(
        url=f"rediss://127.0.0.1:{tls_port}/1?ssl_cert_reqs=CERT_REQUIRED", key="shop", capacity=5, fill_rate=1
    )
    with pytest.raises(StoreUnavailable, match="certificate"):
        bucket.consume()


@pytest.mark.parametrize(
    ("query", "said"),
    [("ssl_ca_certs=/nowhere.pem", "a file that can be read"), ("credential_provider=nowhere:Provider", "a class")],
)
def test_what_an_option_names_must_be_there(query, said):
    with pytest.raises(ConfigError, match=said):
        RedisTokenBucket(url=f"rediss://:secret@h?{query}", key="shop", capacity=5, fill_rate=1)


def test_an_option_that_the_installed_redis_does_not_know_is_named():
    def old(*, host, port):
        raise AssertionError((host, port))

    driver = dataclasses.replace(SYNC, client=old)
    with pytest.raises(ConfigError, match="url is 'redis://h\\?protocol=3', expected no option protocol"):
        client_at(driver, parse_url("redis://h?protocol=3"))


def test_sentinels(tmp_path):
    with RedisSentinel.start(tmp_path / "sentinel", sentinels=2) as sentinel:
        for port, password in zip([sentinel.master.port, sentinel.replica.port], ["secret"] * 2, strict=True):
            with redis.Redis(port=port) as client:
                client.config_set("masterauth", password)
                client.config_set("requirepass", password)
        for port in sentinel.ports:
            with redis.Redis(port=port) as client:
                client.execute_command("SENTINEL", "SET", sentinel.SERVICE, "auth-pass", "secret")
                client.execute_command("ACL", "SETUSER", "default", ">other", "resetpass", ">other")
        first, second = (f"127.0.0.1:{port}" for port in sentinel.ports)
        url = f"sentinel://:secret@{first};sentinel://:secret@{second}/1"
        client = client_at(
            SYNC, parse_url(url, {"master_name": sentinel.SERVICE, "sentinel_kwargs": {"password": "other"}})
        )
        bucket = RedisTokenBucket(client, "shop", 5, SLOW)
        wait_until(lambda: granted(bucket), timeout=10)
        with redis.Redis(port=sentinel.master.port, password="secret", db=1) as master:
            assert master.keys() == [b"bucketflow:{shop}"]
        for port in sentinel.ports:
            with redis.Redis(port=port, password="other") as open_to_all:
                open_to_all.execute_command("ACL", "SETUSER", "default", "nopass")
        assert consumed(f"{url}?master_name={sentinel.SERVICE}") <= 2


def granted(bucket):
    try:
        return bucket.consume()
    except StoreUnavailable:
        return False


def test_a_cluster_whose_first_node_is_away(tmp_path):
    with RedisCluster.start(tmp_path / "cluster") as cluster:
        away = free_port()
        url = f"redis+cluster://127.0.0.1:{away};redis+cluster://127.0.0.1:{cluster.nodes[0].port}"
        assert consumed(url) == 3
        with cluster.client() as client:
            assert client.exists("bucketflow:{shop}") == 1


def test_a_client_of_a_cluster_that_is_away_can_be_made():
    bucket = RedisTokenBucket(
        url=f"redis+cluster://127.0.0.1:{free_port()}", key="shop", capacity=5, fill_rate=SLOW, timeout=0.2
    )
    with pytest.raises(StoreUnavailable):
        bucket.consume()


@pytest.mark.parametrize("kind", [RedisTokenBucket, AsyncRedisTokenBucket])
def test_no_secret_is_shown_of_sentinels_that_do_not_answer(kind):
    driver = SYNC if kind is RedisTokenBucket else ASYNC
    away = ";".join(f"sentinel://me:secret@127.0.0.1:{free_port()}" for _ in range(2))
    secrets = dict.fromkeys(("password", "client_name"), "secret")
    client = client_at(driver, parse_url(away, {"master_name": "m", "sentinel_kwargs": {**secrets, "ssl": True}}))
    bucket = kind(client, "shop", 5, 1, timeout=0.5)

    async def consume():
        return await bucket.consume()

    with pytest.raises(StoreUnavailable) as caught:
        bucket.consume() if kind is RedisTokenBucket else asyncio.run(consume())

    assert "No master found for 'm'" in str(caught.value)
    assert "<redis" not in str(caught.value)
    assert "secret" not in str(caught.value) + repr(caught.value)
