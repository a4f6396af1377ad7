"""
URLs of Redis servers, in the spellings of redis-py and of Celery.

A mistake raises a ``ConfigError`` that shows the URL without its user name, its password and any other secret. Text
that may be part of a password is not shown either: users forget to quote the characters that have a meaning in a URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from bucketflow.errors import ConfigError
from bucketflow.redis_client.url_options import SENTINEL_OPTIONS, WrongValue, check_option, is_secret, names

__all__ = ["ServerUrl", "is_redis_url", "parse_url", "redact"]

#: Kind and use of TLS of each scheme. With sentinels, an option of TLS enables it.
_SCHEMES = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "unix": ("socket", False),
    "socket": ("socket", False),
    "redis+socket": ("socket", False),
    "sentinel": ("sentinel", False),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_EXAMPLES = "redis://localhost:6379/1, rediss://, redis+socket:///path, sentinel:// or redis+cluster://"
_DEFAULT_PORTS = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_MAX_PORT = 65535
_MASK = "**"

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_BETWEEN_SERVERS = re.compile(r";(?=[a-z][a-z0-9+.-]*://)", re.IGNORECASE)
_PLAIN = re.compile(r"[\w.,:/+-]+")
_HOST = re.compile(r"[\w.-]+|\[[0-9a-f:.%\w]+\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """
    What a URL says.

    Attributes:
        kind: ``"server"``, ``"socket"``, ``"sentinel"`` or ``"cluster"``.
        shown: The URL without secrets.
        addresses: Host and port of the server, of each sentinel, or of the nodes of a cluster to start with.
        path: The path of a Unix socket.
        options: Options by the names of redis-py.
    """

    kind: str
    shown: str
    addresses: tuple[tuple[str, int], ...] = ()
    path: str = ""
    options: dict[str, Any] = field(default_factory=dict, repr=False)


def is_redis_url(url: object) -> bool:
    """Return whether *url* begins with a scheme of a Redis server."""
    match = _SCHEME.match(url) if isinstance(url, str) else None
    return match is not None and match[1].lower() in _SCHEMES


def redact(url: str) -> str:
    """
    Return *url* as errors and logs may show it.

    What comes before the last ``@`` is masked, whatever it is, and so is what takes the place of a port and is none: it
    may be a password without an ``@`` behind it. Of the options only the values of those are shown that are no secrets,
    and behind a secret no unknown option, which may be the rest of it.
    """
    match = _SCHEME.match(url)
    scheme = match[0] if match else ""
    before, at, rest = url[len(scheme) :].rpartition("@")
    if {"?", "#"} & {*before}:
        return scheme + _MASK
    end = re.search(r"[?#]|$", rest).start()  # type: ignore[union-attr]
    servers = ";".join(map(_redacted_server, _BETWEEN_SERVERS.split(rest[:end])))
    return scheme + (_MASK if before else "") + at + servers + _redacted_options(rest[end:])


def _redacted_server(text: str) -> str:
    match = _SCHEME.match(text)
    scheme = match[0] if match else ""
    authority = text[len(scheme) :].partition("/")[0]
    host, port = _host_and_port(authority)
    return f"{scheme}{host}:{_MASK}" if port and not _is_port(port) else text


def _host_and_port(text: str) -> tuple[str, str]:
    """Split *text* at the first colon that is not inside the brackets of an IPv6 address."""
    bracket = re.match(r"\[[^]]*\](?=:|$)", text)
    host, _, port = (text[bracket.end() :] if bracket else text).partition(":")
    return (bracket[0] if bracket else "") + host, port


def _redacted_options(text: str) -> str:
    """Return *text*, which is empty or begins with ``?`` or ``#``, with values only where they are plain ones."""
    options, known, follows_secret = [], names(sentinel=True), False
    for pair in text[1:].split("&"):
        name, equals, value = pair.partition("=")
        if not _PLAIN.fullmatch(name) or (follows_secret and name not in known):
            options.append(_MASK)
            continue
        follows_secret = follows_secret or is_secret(name)
        is_hidden = value and (is_secret(name) or not _PLAIN.fullmatch(value))
        options.append(name + equals + (_MASK if is_hidden else value))
    return text[:1] + "&".join(options) if len(text) > 1 else ""


def parse_url(
    url: object, options: Mapping[str, Any] | None = None, entry: str = "url", options_entry: str = "url_options"
) -> ServerUrl:
    """
    Return what *url* and *options* say.

    Args:
        url: Several sentinels, or nodes of a cluster, are separated by semicolons: ``sentinel://a;sentinel://b/1``.
        options: Further options, which take precedence over those of *url*.
        entry: What the user calls *url*, for errors.
        options_entry: What the user calls *options*.

    Raises:
        ConfigError: The first mistake in *url* or *options*; it shows no secret.
    """
    if not isinstance(url, str) or not url.strip():
        raise ConfigError(entry, type(url).__name__ if url else url, f"a URL such as {_EXAMPLES}")
    return _Parser(url.strip(), entry).parse(options or {}, options_entry)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= len(str(_MAX_PORT)) and 1 <= int(text) <= _MAX_PORT


class _Parser:
    """
    Parses one URL.

    Args:
        url: Not empty.
        entry: What the user calls it.
    """

    def __init__(self, url: str, entry: str) -> None:
        self._url, self._entry = url, entry
        self._kind = ""
        self._has_tls = self._has_secret = False  # the latter: among the options behind the "?"
        self._options: dict[str, Any] = {}

    def parse(self, given: Mapping[str, Any], given_entry: str) -> ServerUrl:
        if re.search(r"[\s\x00-\x1f\x7f]", self._url):
            raise self._wrong("a URL without spaces and line breaks")
        parts = _BETWEEN_SERVERS.split(self._url)
        schemes = {match[1].lower() if (match := _SCHEME.match(part)) else "" for part in parts}
        scheme = schemes.pop()
        if schemes or scheme not in _SCHEMES:
            raise self._wrong(f"a URL that begins with {_EXAMPLES}")
        self._kind, self._has_tls = _SCHEMES[scheme]
        if len(parts) > 1 and self._kind not in ("sentinel", "cluster"):
            raise self._wrong("one server; sentinel:// and redis+cluster:// may name several, separated by semicolons")
        places = [self._part(part[part.index("://") + 3 :]) for part in parts]
        self._take_given(given, given_entry)
        self._check_options()
        shown = redact(self._url)
        if self._kind == "socket":
            return ServerUrl(self._kind, shown, path=places[0][0], options=self._options)
        return ServerUrl(self._kind, shown, addresses=tuple(places), options=self._options)

    def _part(self, text: str) -> tuple[str, int]:
        """Store the options of one server; return its host and port, or the path of its socket and 0."""
        if "#" in text:
            raise self._wrong("no '#'; in a password it is written %23")
        head, _, query = text.partition("?")
        if "@" in query:
            raise self._wrong("no '@' after a '?'; in a password they are written %40 and %3F")
        authority, _, path = head.partition("/")
        if "@" in path:
            raise self._wrong("no '@' after a '/'; in a password they are written %40 and %2F")
        user_info, _, server = authority.rpartition("@")
        user, _, password = user_info.partition(":")
        for name, value in (("username", user), ("password", password)):
            if value:
                self._set(name, unquote(value))
        for name, value in parse_qsl(query, keep_blank_values=True):
            self._take(name, value)
        if self._kind == "socket":
            if server or not path:
                raise self._wrong("the path of a socket after three slashes, such as redis+socket:///run/redis.sock")
            return "/" + unquote(path), 0
        if path.strip("/"):
            self._set("db", self._database(unquote(path.strip("/"))))
        return self._address(server)

    def _address(self, server: str) -> tuple[str, int]:
        host, port = _host_and_port(server)
        host = unquote(host)
        if port and not _is_port(port):
            raise self._wrong(f"a port from 1 to {_MAX_PORT} after the host, and an IPv6 address in brackets")
        if host and not _HOST.fullmatch(host):
            raise self._wrong("a host name or an IP address")
        return host.strip("[]") or "localhost", int(port or _DEFAULT_PORTS[self._kind])

    def _database(self, text: str) -> int:
        try:
            number: int = check_option("db", text)
        except WrongValue:
            raise self._wrong("a database number after the host, such as /1") from None
        return number

    def _take(self, name: str, text: str) -> None:
        """Store an option of the URL."""
        if name not in self._known():
            if self._has_secret:  # the name may be the rest of it
                raise self._wrong("known options only; in a password '&' is written %26")
            raise self._wrong(f"no option {name!r}; the options are {', '.join(self._known())}")
        try:
            value = check_option(name, text)
        except WrongValue as wrong:
            raise self._wrong(f"the option {name} to be {wrong.expected}") from None
        self._has_secret = self._has_secret or is_secret(name)
        if name.startswith("ssl_") or (name == "ssl" and value):
            if self._kind == "server" and not self._has_tls:
                raise self._wrong(f"rediss:// with the option {name}")
            self._has_tls = True
        self._set("db" if name == "virtual_host" else name, value)

    def _set(self, name: str, value: object) -> None:
        if self._options.setdefault(name, value) != value:
            what = "database number" if name == "db" else name
            raise self._wrong(f"one {what}; it is given more than once")

    def _take_given(self, given: Mapping[str, Any], entry: str) -> None:
        """Store the options beside the URL."""
        for name, value in given.items():
            if name not in self._known():
                raise ConfigError(f"{entry}[{name!r}]", _MASK, f"one of the options {', '.join(self._known())}")
            self._options["db" if name == "virtual_host" else name] = _checked(f"{entry}[{name!r}]", name, value)
            self._has_tls = self._has_tls or name.startswith("ssl_") or (name == "ssl" and self._options[name])

    def _check_options(self) -> None:
        options = self._options
        if self._kind == "sentinel" and "master_name" not in options:
            raise self._wrong("a master_name: sentinel://...?master_name=mymaster, or url_options={'master_name': ...}")
        if self._kind == "cluster" and options.get("db"):
            raise self._wrong("no database number but 0, which is the only one of a cluster")
        if self._kind == "socket" and self._has_tls:
            raise self._wrong("no option of TLS, which a socket does not have")
        if "credential_provider" in options:
            options.pop("username", None)
            options.pop("password", None)
        if options.pop("ssl", True) is False and self._has_tls:
            raise self._wrong("neither rediss:// nor another option of TLS beside ssl=false")
        if self._has_tls:
            options["ssl"] = True
        if options.get("ssl_cert_reqs") == "none":
            options["ssl_check_hostname"] = False

    def _known(self) -> list[str]:
        return names(sentinel=self._kind == "sentinel")

    def _wrong(self, expected: str) -> ConfigError:
        return ConfigError(self._entry, redact(self._url), expected)


def _checked(entry: str, name: str, value: Any) -> Any:  # noqa: ANN401 - depends on the option
    """Return the *value* of an option beside the URL as redis-py takes it; raises ``ConfigError``."""
    if name == "sentinel_kwargs" and isinstance(value, Mapping):
        known = set(names(sentinel=True)) - SENTINEL_OPTIONS
        for inner in value:
            if inner not in known:
                raise ConfigError(f"{entry}[{inner!r}]", _MASK, f"one of the options {', '.join(sorted(known))}")
        return {inner: _checked(f"{entry}[{inner!r}]", inner, value[inner]) for inner in value}
    try:
        return check_option(name, value)
    except WrongValue as wrong:
        shown = _MASK if is_secret(name) else value
        raise ConfigError(entry, shown, wrong.expected) from None
