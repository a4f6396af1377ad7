"""Where the levels live: the URL that the user gives, else that of the broker or of the result backend."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bucketflow.errors import ConfigError
from bucketflow.redis_client.private_clients import SYNC
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow.redis_client.url import is_redis_url, parse_url, redact
from bucketflow.redis_client.url_clients import client_at
from bucketflow_celery.config.settings import Settings
from bucketflow_celery.store.interfaces import Store
from bucketflow_celery.store.redis_store import RedisStore
from bucketflow_celery.testing import MemoryStore

__all__ = ["Location", "locate"]

logger = logging.getLogger("bucketflow_celery.throttle")

#: Begin of the URL of a broker in the memory of one process; the levels are then in its memory, too.
_MEMORY = "memory:"
#: Options of a Celery transport that also say how its servers are reached.
_TRANSPORT_OPTIONS = (
    "credential_provider",
    "health_check_interval",
    "socket_keepalive",
    "socket_keepalive_options",
)
_SENTINEL_OPTIONS = ("master_name", "min_other_sentinels", "sentinel_kwargs")
#: Options of the result backend, and what a URL calls them.
_BACKEND_OPTIONS = {
    "redis_backend_credential_provider": "credential_provider",
    "redis_backend_health_check_interval": "health_check_interval",
    "redis_password": "password",
    "redis_socket_keepalive": "socket_keepalive",
    "redis_username": "username",
}


class Location(NamedTuple):
    """
    Where the levels live.

    Attributes:
        entry: The option of the URL: ``"url"``, ``"broker_url"`` or ``"result_backend"``.
        url: The URL; may hold a password.
        options: Options beside those of the URL.
        options_entry: What the user calls them.
    """

    entry: str
    url: str
    options: Mapping[str, Any]
    options_entry: str

    def __repr__(self) -> str:
        """Show no secret."""
        return f"Location(entry={self.entry!r}, url={redact(self.url)!r})"

    def mistake(self, expected: str) -> ConfigError:
        """Return the error for a URL that is wrong: *expected* describes a right one."""
        return ConfigError(self.entry, redact(self.url), expected)

    def announce(self) -> None:
        """Log where the levels live, unless the user has said so."""
        if self.entry != "url":
            logger.info("url is not set, the buckets are kept where %s says: %s", self.entry, redact(self.url))

    def store(self, timeout: float, namespace: str) -> Store:
        """Return a store there; opens no connection. Raises ``ConfigError``, which shows no secret."""
        if self.url.startswith(_MEMORY):
            return MemoryStore()
        try:
            url = parse_url(self.url, self.options, self.entry, self.options_entry)
        except ConfigError as mistake:
            if self.entry == "url":
                raise
            expected = f"{mistake.expected}; or give the throttle a url of its own"
            raise ConfigError(mistake.entry, mistake.value, expected) from None
        return RedisStore(ScriptRunner(client_at(SYNC, url, self.entry), timeout), namespace)


def locate(settings: Settings, conf: Any) -> Location:
    """
    Return where the levels live.

    Args:
        settings: The options of the throttle.
        conf: ``app.conf``.

    Raises:
        ConfigError: The user gave no URL, and neither the broker nor the result backend is a Redis.
    """
    if settings.url is not None:
        return Location("url", settings.url, settings.url_options or {}, "url_options")
    broker, backend = _joined(conf.broker_read_url), _joined(conf.result_backend)
    if broker.startswith(_MEMORY):
        if settings.url_options:
            raise ConfigError(
                "url_options",
                "not empty",
                "a url: without one the memory of the process is used, as the broker is memory://",
            )
        return Location("broker_url", broker, {}, "")
    for location in (_of_broker(broker, conf), _of_backend(backend, conf)):
        if is_redis_url(location.url):
            return location._replace(options={**location.options, **(settings.url_options or {})})
    expected = (
        'where the buckets live, such as "redis://localhost/1": neither the broker nor the result backend is a Redis'
    )
    raise ConfigError("url", None, expected)


def _joined(url: Any) -> str:
    """Return *url*, of which Celery permits a list, as one text."""
    if isinstance(url, (list, tuple)):
        return ";".join(map(str, url))
    return url if isinstance(url, str) else ""


def _of_broker(url: str, conf: Any) -> Location:
    options = _transport_options(url, conf.get("broker_transport_options"))
    options |= _tls(url, conf.get("broker_use_ssl"))
    if url.startswith("rediss:") and "ssl_cert_reqs" not in options and "ssl_cert_reqs" not in url:
        options["ssl_cert_reqs"] = "none"  # as Celery connects to this broker; it warns of it
    return Location("broker_url", url, options, "broker_transport_options")


def _of_backend(url: str, conf: Any) -> Location:
    options = {name: conf.get(key) for key, name in _BACKEND_OPTIONS.items() if conf.get(key)}
    if "@" in url:  # the URL takes precedence
        options = {name: value for name, value in options.items() if name not in ("username", "password")}
    options |= _transport_options(url, conf.get("result_backend_transport_options"))
    return Location("result_backend", url, options | _tls(url, conf.get("redis_backend_use_ssl")), "redis_...")


def _transport_options(url: str, given: Any) -> dict[str, Any]:
    names: Iterable[str] = _TRANSPORT_OPTIONS
    if url.startswith("sentinel:"):
        names = (*names, *_SENTINEL_OPTIONS)
    given = given if isinstance(given, Mapping) else {}
    return {name: given[name] for name in names if given.get(name)}


def _tls(url: str, given: Any) -> dict[str, Any]:
    """Return the options of TLS in *given*; with a socket, and with ``True`` alone, Celery does not use TLS either."""
    if not isinstance(given, Mapping) or "socket:" in url:
        return {}
    return {name: value for name, value in given.items() if str(name).startswith("ssl_")}
