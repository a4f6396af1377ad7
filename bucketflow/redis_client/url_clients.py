"""Clients of the servers that a URL names. Making one opens no connection."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import redis.asyncio.cluster
import redis.cluster

from bucketflow.errors import ConfigError
from bucketflow.redis_client.private_clients import SYNC, ClusterSeeds, Driver
from bucketflow.redis_client.url import ServerUrl, parse_url
from bucketflow.redis_client.url_options import IGNORED

__all__ = ["client_at", "shared_client"]

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")

#: The clients of :func:`shared_client`, by driver and URL.
_shared: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()


def client_at(driver: Driver, url: ServerUrl, entry: str = "url") -> Any:  # noqa: ANN401 - of either half
    """
    Return a client of the servers at *url*, for :mod:`bucketflow.redis_client.runner`.

    Raises:
        ConfigError: A file of the TLS options is not there, a class of credentials cannot be imported, or the installed
            version of redis-py does not know an option.
    """
    try:
        return _client_at(driver, url, entry)
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        expected = f"no option {unknown[1]}, which the installed version of redis-py does not know"
        raise ConfigError(entry, url.shown, expected) from None


def _client_at(driver: Driver, url: ServerUrl, entry: str) -> Any:  # noqa: ANN401 - of either half
    options = {name: value for name, value in url.options.items() if name not in IGNORED}
    options = _resolved(options, entry, url.shown)
    if url.kind == "socket":
        return driver.client(unix_socket_path=url.path, **options)
    if url.kind == "server":
        ((host, port),) = url.addresses
        return driver.client(host=host, port=port, **options)
    if url.kind == "sentinel":
        name, quorum = options.pop("master_name"), options.pop("min_other_sentinels", 0)
        settings = _resolved(options.pop("sentinel_kwargs", {}), entry, url.shown)
        sentinel = driver.sentinel(url.addresses, min_other_sentinels=quorum, sentinel_kwargs=settings, **options)
        return sentinel.master_for(name)
    connection = driver.tls_connection if options.pop("ssl", False) else driver.connection
    return ClusterSeeds(url.addresses, {"connection_class": connection, **_parser(driver), **options})


def shared_client(driver: Driver, url: str) -> Any:  # noqa: ANN401 - of either half
    """Return the client of *url* that all its callers share. Raises ``ConfigError``."""
    client = _shared.get((driver.name, url))
    if client is None:
        client = _shared[driver.name, url] = client_at(driver, parse_url(url))
    return client


def _parser(driver: Driver) -> dict[str, Any]:
    """Return the setting that lets redis-py before 8 recognise the replies of a cluster."""
    module = redis.cluster if driver is SYNC else redis.asyncio.cluster
    parser = getattr(module, "ClusterParser", None)
    return {} if parser is None else {"parser_class": parser}


def _resolved(options: Mapping[str, Any], entry: str, shown: str) -> dict[str, Any]:
    """Return *options* with an object in place of the path of its class, once all their files are there."""
    for name in _FILES:
        if name in options and not os.access(options[name], os.R_OK):
            raise ConfigError(entry, shown, f"the option {name} to name a file that can be read")
    provider = options.get("credential_provider")
    if not isinstance(provider, str):
        return dict(options)
    module, _, name = provider.replace(":", ".").rpartition(".")
    try:
        return {**options, "credential_provider": getattr(importlib.import_module(module), name)()}
    except (ImportError, AttributeError, ValueError, TypeError):
        expected = "the option credential_provider to be the path of a class that can be made without arguments"
        raise ConfigError(entry, shown, expected) from None
