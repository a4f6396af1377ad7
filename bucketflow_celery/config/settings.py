"""The options of a throttle: their defaults, their checks, and where they are read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from bucketflow.errors import ConfigError
from bucketflow.validation import check_count, check_number
from bucketflow_celery.config.choices import OnLimit, OnStoreError, check_choice
from bucketflow_celery.config.near_miss import nearest
from bucketflow_celery.config.rules import TenantRule
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.errors import ConfigErrors

__all__ = ["PREFIX", "Settings"]

#: Prefix of every option in ``app.conf``. Django's ``CELERY_`` comes before it.
PREFIX = "bucketflow_"

#: Takes the name and value of an option and a list for errors; returns the checked value, or raises ``ConfigError``.
_Check: TypeAlias = Callable[[str, Any, "list[ConfigError]"], Any]


def _limits(_entry: str, value: Any, mistakes: list[ConfigError]) -> LimitTable:
    return LimitTable.parse(value, mistakes)


def _text(entry: str, value: object, _mistakes: list[ConfigError]) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(entry, value, "a non-empty string")
    return value


def _without_secrets(value: object) -> object:
    """Return *value*, or its type if it may hold a password."""
    return value if not value or isinstance(value, (int, float)) else type(value)


def _url(entry: str, value: object, _mistakes: list[ConfigError]) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(entry, _without_secrets(value), 'a URL such as "redis://localhost/1"')
    return value


def _options(entry: str, value: object, _mistakes: list[ConfigError]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(entry, _without_secrets(value), 'a dict such as {"master_name": "mymaster"}')
    return value


def _namespace(entry: str, value: object, mistakes: list[ConfigError]) -> str:
    text = _text(entry, value, mistakes)
    if set(text) & set("{}"):
        raise ConfigError(entry, value, "a string without braces, which mark the hash tag")
    return text


def _tenant(entry: str, value: object, _mistakes: list[ConfigError]) -> object:
    if not (callable(value) or (isinstance(value, str) and value)):
        raise ConfigError(entry, value, "the name of an argument, or a callable")
    return value


def _seconds(entry: str, value: object, _mistakes: list[ConfigError]) -> float:
    return check_number(entry, value, "a number of seconds above 0", above=True)


def _share(entry: str, value: object, _mistakes: list[ConfigError]) -> float:
    expected = "a share of each limit, above 0 and at most 1"
    share = check_number(entry, value, expected, above=True)
    if share > 1:
        raise ConfigError(entry, value, expected)
    return share


def _lease(entry: str, value: object, _mistakes: list[ConfigError]) -> float:
    return check_number(entry, value, "a number of seconds, 1 or more", minimum=1.0)


def _count(entry: str, value: object, _mistakes: list[ConfigError]) -> int:
    return check_count(entry, value, "a whole number of tasks, 1 or more")


def _flag(entry: str, value: object, _mistakes: list[ConfigError]) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(entry, value, "True or False")
    return value


def _choice(choices: object) -> _Check:
    def check(entry: str, value: object, _mistakes: list[ConfigError]) -> object:
        check_choice(entry, value, choices)
        return value

    return check


@dataclass(frozen=True)
class Settings:
    """
    The checked options of a throttle.

    Attributes:
        url: URL of the Redis that keeps the buckets; ``None``: that of the broker or of the result backend.
        url_options: Options beside those of the URL, such as ``master_name``.
        limits: Table of limits: ``all``, ``queues``, ``tenants``, ``tasks``, and ``weights``.
        on_limit: What happens to a refused task. ``"retry"``: a task refused by its tenant's or its own limit is
            republished with a countdown, and one refused by ``all`` or its queue is held. ``"hold"``: it is held in the
            worker. ``"park"``: it is parked in Redis, and dispatched to a worker when it may start.
        on_store_error: What happens to tasks while Redis is unavailable. ``"hold"``: they are held. ``"admit"``: they
            start without limits. ``"refuse"``: they are republished with a countdown. ``"local"``: each worker starts
            them by its own buckets, which have a share of each limit.
        local_share: That share, above 0 and at most 1; ``None``: one over the number of workers last seen.
        max_wait: Maximum total wait in seconds before a task fails with ``ThrottleTimeout``; ``None`` for unlimited.
        max_hold: Maximum seconds for which a worker holds a message before it returns to the broker. Capped at a
            quarter of the broker's visibility timeout, and at a third of ``consumer_timeout``.
        hold_limit: Maximum number of messages that a worker holds for tenants and task types. Further tasks go back to
            the end of their queue.
        max_countdown: Longest countdown in seconds. Capped at a fifth of the visibility timeout, and at half of
            ``consumer_timeout``. A task that may start
            later is delivered early, and republished with the reservation that it has.
        consumer_timeout: Seconds after which RabbitMQ closes the channel of an unacknowledged message, as configured in
            the server or by a policy.
        tenant: Rule for the tenant of a task whose decorator has none.
        tenant_inherits: Whether a task that a running task publishes has the tenant of that one, if it has none of its
            own.
        namespace: Prefix of every key, and their hash tag.
        timeout: Maximum seconds to wait for a reply of Redis.
        backlog_limit: Maximum number of parked tasks in one queue. Further tasks stay with the broker.
        lease: Seconds within which the dispatched tasks of a worker that has died go to another one.
        parked_state: Whether the result of a parked task has the state ``PARKED``, with its position and its estimated
            start time.
    """

    url: str | None = field(default=None, repr=False, metadata={"check": _url})
    url_options: Mapping[str, Any] | None = field(default=None, repr=False, metadata={"check": _options})
    limits: LimitTable = field(default=LimitTable(), metadata={"check": _limits})
    on_limit: OnLimit = field(default="retry", metadata={"check": _choice(OnLimit)})
    on_store_error: OnStoreError = field(default="hold", metadata={"check": _choice(OnStoreError)})
    local_share: float | None = field(default=None, metadata={"check": _share})
    max_wait: float | None = field(default=None, metadata={"check": _seconds})
    max_hold: float = field(default=600.0, metadata={"check": _seconds})
    hold_limit: int = field(default=500, metadata={"check": _count})
    max_countdown: float = field(default=900.0, metadata={"check": _seconds})
    consumer_timeout: float = field(default=1800.0, metadata={"check": _seconds})
    tenant: TenantRule = field(default=None, metadata={"check": _tenant})
    tenant_inherits: bool = field(default=False, metadata={"check": _flag})
    namespace: str = field(default="bucketflow", metadata={"check": _namespace})
    timeout: float = field(default=1.0, metadata={"check": _seconds})
    backlog_limit: int = field(default=1_000_000, metadata={"check": _count})
    lease: float = field(default=30.0, metadata={"check": _lease})
    parked_state: bool = field(default=False, metadata={"check": _flag})

    @classmethod
    def read(cls, given: Mapping[str, Any], conf: Mapping[str, Any]) -> Settings:
        """
        Return the settings in *given*, completed from *conf*.

        Args:
            given: Options by name; ``None`` for an option that is not given.
            conf: ``app.conf``, or any mapping with ``bucketflow_...`` keys.

        Raises:
            ConfigErrors: An option is invalid or unknown. It holds every error, each of which names its entry.
        """
        values: dict[str, Any] = {}
        mistakes: list[ConfigError] = []
        for option in fields(cls):
            value = given.get(option.name)
            if value is None:
                value = conf.get(PREFIX + option.name)
            if value is None:
                continue
            try:
                values[option.name] = option.metadata["check"](option.name, value, mistakes)
            except ConfigError as mistake:
                mistakes.append(mistake)
        # Not earlier: Celery loads the configuration at the first read of an option.
        mistakes += _unknown(conf, [option.name for option in fields(cls)], values)
        if mistakes:
            raise ConfigErrors(mistakes)
        return cls(**values)


def _unknown(conf: Mapping[str, Any], names: Sequence[str], read: Mapping[str, Any]) -> list[ConfigError]:
    """
    Return an error for every key of *conf* that is meant to be an option and is none.

    Args:
        conf: See :meth:`Settings.read`.
        names: Names of the options.
        read: The options that have a value. A key in the wrong case, such as a constant that a module of settings has
            for other uses, is an error only if its option has none.
    """
    # With a namespace, such as Django's, Celery keeps the keys as the user wrote them.
    namespace = getattr(conf, "prefix", None) or ""
    spelt = {PREFIX + name: _in_case_of(namespace, namespace + PREFIX + name) for name in names}
    valid = {*spelt, *spelt.values()}
    mistakes = []
    for key in map(str, conf):
        own = key.lower().removeprefix(namespace.lower())
        # The distance to each option costs too much for all of Celery's own keys.
        if key in valid or not ("bucket" in own or "flow" in own):
            continue
        option = nearest(own, spelt)
        if option == own and own.removeprefix(PREFIX) in read:
            continue
        shown = _without_secrets(conf.get(key))  # it may be a misspelt URL
        if option is not None:
            mistakes.append(ConfigError(key, shown, f"{spelt[option]}, if the option {option} is meant"))
        elif own.startswith(PREFIX):
            mistakes.append(ConfigError(key, shown, "one of " + ", ".join(sorted(spelt.values()))))
    return mistakes


def _in_case_of(namespace: str, key: str) -> str:
    return key.upper() if namespace.isupper() else key
