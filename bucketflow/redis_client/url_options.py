"""The options of a URL: which there are, how their values are spelled, and which of them are secret."""

from __future__ import annotations

import math
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

__all__ = ["IGNORED", "SENTINEL_OPTIONS", "WrongValue", "check_option", "is_secret", "names"]


class WrongValue(Exception):
    """
    The value of an option is wrong.

    Attributes:
        expected: Description of a valid value.
    """

    def __init__(self, expected: str) -> None:
        super().__init__(expected)
        self.expected = expected


#: Takes the value of an option, text in a URL; returns the value for redis-py, or raises ``WrongValue``.
_Check: TypeAlias = Callable[[Any], Any]

_DIGITS = re.compile(r"[0-9]{1,18}")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_CERT_REQS: dict[object, str] = {
    spelling: mode
    for mode in ("none", "optional", "required")
    for spelling in (mode, f"cert_{mode}", ssl.VerifyMode[f"CERT_{mode.upper()}"])
} | {None: "none"}


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise WrongValue("a non-empty string")
    return value


def _flag(value: object) -> bool:
    flag = value if isinstance(value, bool) else _FLAGS.get(str(value).lower())
    if flag is None:
        raise WrongValue("true or false")
    return flag


def _whole(minimum: int, maximum: float = math.inf) -> _Check:
    expected = f"a whole number, {minimum} or more" if maximum == math.inf else f"{minimum} or {maximum}"

    def check(value: object) -> int:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if not (is_number or (isinstance(value, str) and _DIGITS.fullmatch(value))):
            raise WrongValue(expected)
        number = int(str(value))
        if not minimum <= number <= maximum:
            raise WrongValue(expected)
        return number

    return check


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise WrongValue("a number of seconds, 0 or more")
    return seconds


def _cert_reqs(value: object) -> str:
    spelling = value.lower() if isinstance(value, str) else value
    for known, mode in _CERT_REQS.items():
        if spelling == known:
            return mode
    raise WrongValue("CERT_REQUIRED, CERT_OPTIONAL or CERT_NONE")


def _mapping(value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise WrongValue("a dict, which only url_options can hold")
    return value


def _provider(value: Any) -> Any:  # noqa: ANN401 - a provider, or where it can be imported from
    if not (isinstance(value, str) and value) and not hasattr(value, "get_credentials"):
        raise WrongValue("a redis.CredentialProvider, or the path of its class")
    return value


#: Options that are accepted because redis-py knows them. The private connections have settings of their own.
IGNORED = frozenset(
    {"decode_responses", "encoding", "encoding_errors", "retry_on_timeout", "socket_connect_timeout"}
    | {"socket_read_size", "socket_timeout", "timeout"}
)
#: Options that only a URL of sentinels has.
SENTINEL_OPTIONS = frozenset({"master_name", "min_other_sentinels", "sentinel_kwargs"})
_SECRET = frozenset({"password", "ssl_ca_data", "ssl_password", "username", "sentinel_kwargs"})

_CHECKS: dict[str, _Check] = {
    "client_name": _text,
    "credential_provider": _provider,
    "db": _whole(0),
    "decode_responses": _flag,
    "encoding": _text,
    "encoding_errors": _text,
    "health_check_interval": _seconds,
    "master_name": _text,
    "max_connections": _whole(1),
    "min_other_sentinels": _whole(0),
    "password": _text,
    "protocol": _whole(2, 3),
    "retry_on_timeout": _flag,
    "sentinel_kwargs": _mapping,
    "socket_connect_timeout": _seconds,
    "socket_keepalive": _flag,
    "socket_keepalive_options": _mapping,
    "socket_read_size": _whole(1),
    "socket_timeout": _seconds,
    "ssl": _flag,
    "ssl_ca_certs": _text,
    "ssl_ca_data": _text,
    "ssl_ca_path": _text,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_certfile": _text,
    "ssl_check_hostname": _flag,
    "ssl_ciphers": _text,
    "ssl_keyfile": _text,
    "ssl_min_version": _whole(0),
    "ssl_password": _text,
    "timeout": _seconds,
    "username": _text,
    "virtual_host": _whole(0),
}


def names(*, sentinel: bool) -> list[str]:
    """Return the names of all options, sorted, those of :data:`SENTINEL_OPTIONS` only if *sentinel*."""
    return [name for name in _CHECKS if sentinel or name not in SENTINEL_OPTIONS]


def is_secret(name: str) -> bool:
    """Return whether the value of the option *name* must not be shown; true of options that do not exist."""
    return name in _SECRET or name not in _CHECKS


def check_option(name: str, value: Any) -> Any:  # noqa: ANN401 - depends on the option
    """
    Return the value of the option *name* as redis-py takes it.

    Raises:
        KeyError: There is no such option.
        WrongValue: *value* is wrong.
    """
    return _CHECKS[name](value)
