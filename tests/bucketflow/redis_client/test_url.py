"""URLs: every spelling of redis-py and of Celery, every mistake, and no part of a password in what is shown."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucketflow import ConfigError
from bucketflow.distributed import AsyncRedisTokenBucket, RedisTokenBucket
from bucketflow.redis_client.url import is_redis_url, parse_url, redact

ONE, TWO = ("a", 26379), ("b", 26379)

SPELLINGS = [  # URL, options beside it, kind, addresses or path, options
    ("redis://", {}, "server", (("localhost", 6379),), {}),
    ("redis://h", {}, "server", (("h", 6379),), {}),
    ("redis://h:7000/2", {}, "server", (("h", 7000),), {"db": 2}),
    ("redis://h/", {}, "server", (("h", 6379),), {}),
    ("redis://h/2/", {}, "server", (("h", 6379),), {"db": 2}),
    ("redis://h:/2", {}, "server", (("h", 6379),), {"db": 2}),
    ("REDIS://h?db=2", {}, "server", (("h", 6379),), {"db": 2}),
    ("redis://h?virtual_host=2", {}, "server", (("h", 6379),), {"db": 2}),
    (" redis://h/2\n", {}, "server", (("h", 6379),), {"db": 2}),
    ("redis://[::1]:7000/2", {}, "server", (("::1", 7000),), {"db": 2}),
    ("redis://my_service.example-1", {}, "server", (("my_service.example-1", 6379),), {}),
    ("redis://:pw@h", {}, "server", (("h", 6379),), {"password": "pw"}),
    ("redis://me:p%40%2F%25@h", {}, "server", (("h", 6379),), {"username": "me", "password": "p@/%"}),
    ("redis://:p@w@h", {}, "server", (("h", 6379),), {"password": "p@w"}),
    ("redis://:100%@h", {}, "server", (("h", 6379),), {"password": "100%"}),
    ("redis://:pw@h", {"password": "other"}, "server", (("h", 6379),), {"password": "other"}),
    (
        "redis://h?health_check_interval=2&protocol=3&max_connections=5&socket_keepalive=yes&client_name=me",
        {},
        "server",
        (("h", 6379),),
        {
            "health_check_interval": 2.0,
            "protocol": 3,
            "max_connections": 5,
            "socket_keepalive": True,
            "client_name": "me",
        },
    ),
    ("redis://h", {"ssl_ca_certs": "/ca"}, "server", (("h", 6379),), {"ssl": True, "ssl_ca_certs": "/ca"}),
    ("rediss://h", {}, "server", (("h", 6379),), {"ssl": True}),
    (
        "rediss://h?ssl_ca_certs=%2Fca%20s.pem&ssl_check_hostname=false",
        {},
        "server",
        (("h", 6379),),
        {"ssl": True, "ssl_ca_certs": "/ca s.pem", "ssl_check_hostname": False},
    ),
    ("unix:///run/redis.sock?db=2", {}, "socket", "/run/redis.sock", {"db": 2}),
    ("socket:///run/redis.sock?virtual_host=2", {}, "socket", "/run/redis.sock", {"db": 2}),
    ("redis+socket://:pw@/run/redis.sock", {}, "socket", "/run/redis.sock", {"password": "pw"}),
    ("sentinel://a?master_name=m", {}, "sentinel", (ONE,), {"master_name": "m"}),
    ("sentinel://a;sentinel://b/1", {"master_name": "m"}, "sentinel", (ONE, TWO), {"master_name": "m", "db": 1}),
    ("sentinel://a/1;sentinel://b/1", {"master_name": "m"}, "sentinel", (ONE, TWO), {"master_name": "m", "db": 1}),
    (
        "sentinel://:pw@a;sentinel://:pw@b",
        {"master_name": "m", "sentinel_kwargs": {"password": "other", "ssl": True}},
        "sentinel",
        (ONE, TWO),
        {"password": "pw", "master_name": "m", "sentinel_kwargs": {"password": "other", "ssl": True}},
    ),
    (
        "sentinel://a:1",
        {"master_name": "m", "ssl_cert_reqs": None, "min_other_sentinels": 1},
        "sentinel",
        (("a", 1),),
        {
            "master_name": "m",
            "min_other_sentinels": 1,
            "ssl": True,
            "ssl_cert_reqs": "none",
            "ssl_check_hostname": False,
        },
    ),
    ("redis+cluster://a:7000;redis+cluster://b/0", {}, "cluster", (("a", 7000), ("b", 6379)), {"db": 0}),
    ("rediss+cluster://a", {}, "cluster", (("a", 6379),), {"ssl": True}),
]  # fmt: skip


@pytest.mark.parametrize(("url", "beside", "kind", "place", "options"), SPELLINGS, ids=lambda value: str(value)[:40])
def test_a_spelling_is_understood(url, beside, kind, place, options):
    parsed = parse_url(url, beside)
    assert (parsed.kind, parsed.path or parsed.addresses) == (kind, place)
    assert parsed.options == options
    assert is_redis_url(url.strip())


@pytest.mark.parametrize(
    ("spelling", "mode"),
    [
        *((f"{prefix}{mode}", mode) for mode in ("none", "optional", "required") for prefix in ("", "CERT_", "cert_")),
        ("NONE", "none"),
    ],
)
def test_a_flag_of_tls_may_be_spelled_as_in_celery(spelling, mode):
    assert parse_url(f"rediss://h?ssl_cert_reqs={spelling}").options["ssl_cert_reqs"] == mode
    assert parse_url("rediss://h", {"ssl_cert_reqs": spelling}).options["ssl_cert_reqs"] == mode
    member = ssl.VerifyMode[f"CERT_{mode.upper()}"]
    assert parse_url("rediss://h", {"ssl_cert_reqs": member}).options["ssl_cert_reqs"] == mode


MISTAKES = [  # URL, what the error says
    ("", "a URL such as"),
    (None, "a URL such as"),
    (7, "a URL such as"),
    ("h:6379", "a URL that begins with redis://"),
    ("http://h", "a URL that begins with redis://"),
    ("redis:/h", "a URL that begins with redis://"),
    ("redis://h/1;redis://h/1", "one server"),
    ("redis://h;rediss://h", "begins with"),
    ("sentinel://a?master_name=m;redis://b", "begins with"),
    ("redis://a,b", "a host name"),
    ("redis://a;b", "a host name"),
    ("redis://${HOST}", "a host name"),
    ("redis://::1", "an IPv6 address in brackets"),
    ("redis://h:${PORT}/1", "a port from 1 to 65535"),
    ("redis://h:0", "a port from 1 to 65535"),
    ("redis://h:65536", "a port from 1 to 65535"),
    ("redis://h:6379 /1", "without spaces"),
    ("redis://h/one", "a database number"),
    ("redis://h/-1", "a database number"),
    ("redis://h/1/2", "a database number"),
    ("redis://h/1.5", "a database number"),
    ("redis://h/²", "a database number"),
    ("redis://h/1;b", "a database number"),
    ("redis://h?db=x", "the option db to be a whole number"),
    ("redis://h/1?db=2", "one database number"),
    ("redis://h/1#x", "no '#'"),
    ("redis://h?visibility_timeout=60", "no option 'visibility_timeout'"),
    ("redis://h?visibility_timeout", "no option 'visibility_timeout'"),
    ("redis://h?protocol=4", "the option protocol to be 2 or 3"),
    ("redis://h?health_check_interval=soon", "a number of seconds"),
    ("redis://h?health_check_interval=nan", "a number of seconds"),
    ("redis://h?max_connections=0", "a whole number, 1 or more"),
    ("redis://h?socket_keepalive=maybe", "true or false"),
    ("redis://h?ssl_cert_reqs=none", "rediss:// with the option ssl_cert_reqs"),
    ("rediss://h?ssl_cert_reqs=CERT_SOME", "CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE"),
    ("redis://h?master_name=m", "no option 'master_name'"),
    ("sentinel://a;sentinel://b", "a master_name"),
    ("sentinel://a/1;sentinel://b/2?master_name=m", "one database number"),
    ("sentinel://:x@a;sentinel://:y@b?master_name=m", "one password"),
    ("sentinel://a?sentinel_kwargs=x&master_name=m", "a dict, which only url_options can hold"),
    ("redis+cluster://a/1", "no database number but 0"),
    ("unix://", "the path of a socket after three slashes"),
    ("redis+socket://run/redis.sock", "the path of a socket after three slashes"),
    ("redis+socket:///run/redis.sock?ssl_cert_reqs=none", "no option of TLS"),
    ("redis://:pa/ss@h/1", "%2F"),
    ("redis://:pa?ss@h/1", "%3F"),
    ("redis://:pa#ss@h/1", "%23"),
    ("redis://h?password=pa&ss", "%26"),
    ("rediss://h?ssl=false", "beside ssl=false"),
    ("redis+cluster://h?ssl=no&ssl_cert_reqs=none", "beside ssl=false"),
    ("redis://h?ssl=true", "rediss:// with the option ssl"),
]


@pytest.mark.parametrize(("url", "said"), MISTAKES, ids=str)
def test_a_mistake_is_one_sentence_that_says_what_would_be_right(url, said):
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    sentence = str(caught.value)
    assert sentence.startswith("url is ")
    assert said in sentence
    assert "\n" not in sentence
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("options", "entry"),
    [
        ({"pasword": "secret"}, "url_options['pasword'] is '**', expected one of the options"),
        ({"protocol": 4}, "url_options['protocol'] is 4, expected 2 or 3"),
        ({"max_connections": True}, "url_options['max_connections'] is True"),
        ({"ssl_cert_reqs": "some"}, "url_options['ssl_cert_reqs'] is 'some'"),
        ({"password": 7}, "url_options['password'] is '**'"),
        ({"sentinel_kwargs": {"pasword": "secret"}}, "url_options['sentinel_kwargs']['pasword'] is '**'"),
        ({"sentinel_kwargs": {"master_name": "m"}}, "url_options['sentinel_kwargs']['master_name']"),
        ({"credential_provider": 7}, "url_options['credential_provider'] is 7"),
    ],
    ids=str,
)
def test_a_mistake_in_the_options_beside_a_url_names_its_entry(options, entry):
    with pytest.raises(ConfigError) as caught:
        parse_url("sentinel://a?master_name=m", options)
    assert str(caught.value).startswith(entry)
    assert "secret" not in str(caught.value)


PIECES = st.sampled_from(["zqx", "jkv", "wvq", "%41", "%zz"])
BETWEEN = st.sampled_from(
    ["@", "/", ":", "?", "#", "%", "&", "=", ";", "", "//", "://", ";redis://", "[", "]", "+", " "]
)
PASSWORDS = st.lists(st.tuples(BETWEEN, PIECES), min_size=1, max_size=5).map(
    lambda pairs: "zqx" + "".join(map("".join, pairs))
)
PLACES = st.sampled_from([
    "redis://:{}@h/one",
    "redis://me:{}@h:x/1",
    "rediss://{}@h?nonsense=1",
    "redis://:{}",
    "redis://h/1?password={}&nonsense=1",
    "redis://h/1?ssl_password={}",
    "redis://h/1?pasword={}",
    "sentinel://:{}@a;sentinel://b",
    "sentinel://a;sentinel://:{}@b/x",
    "redis+cluster://me:{}@a/1",
    "redis+socket://:{}@/run/redis.sock?nonsense=1",
    ":{}@h:6379",
])  # fmt: skip


@given(PLACES, PASSWORDS)
def test_no_part_of_a_password_is_shown_whatever_it_holds(place, password):
    url = place.format(password)
    if "@" not in place and "password" not in place and {"@", "/", "?", "#", ";"} & {*password}:
        return  # what follows the last of them may as well be the host
    said = redact(url)
    try:
        said += repr(parse_url(url))
    except ConfigError as error:
        said += str(error) + repr(error) + repr(error.args)
    assert not [piece for piece in ("zqx", "jkv", "wvq", "%41", "%zz", "A") if piece in said.replace("CERT_", "")]


@pytest.mark.parametrize("kind", [RedisTokenBucket, AsyncRedisTokenBucket])
@pytest.mark.parametrize("url", ["redis://:zqx/pw@h/1", "redis://h/one", "localhost", "redis://h?nonsense=1"])
def test_a_bucket_names_the_mistake_in_its_url(kind, url):
    with pytest.raises(ConfigError, match=r"^url is ") as caught:
        kind(url=url, key="shop", capacity=5, fill_rate=1)
    assert "zqx" not in str(caught.value)


@pytest.mark.parametrize("client", ["redis://:zqx@h", b"redis://:zqx@h", ["redis://:zqx@h"]])
def test_what_is_no_client_is_not_shown(client):
    with pytest.raises(ConfigError) as caught:
        RedisTokenBucket(client, "shop", 5, 1)
    assert "zqx" not in str(caught.value)
