"""What can be configured, where it may stand, and what is right. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from bucketflow.errors import ConfigError
from bucketflow.validation import check_number
from bucketflow_celery.config.rules import TenantRule
from bucketflow_celery.config.table import LimitTable
from bucketflow_celery.errors import ConfigErrors

__all__ = ["PREFIX", "Settings", "one_of"]

#: In ``app.conf`` every option stands behind this prefix; Django adds ``CELERY_`` in front of it.
PREFIX = "bucketflow_"


def one_of(entry: str, value: object, *choices: str) -> None:
    """
    Check a word.

    Raises:
        ConfigError: *value* is none of *choices*.
    """
    if value not in choices:
        raise ConfigError(entry, value, "one of " + ", ".join(map(repr, choices)))


@dataclass(frozen=True)
class Settings:
    """
    The options of a throttle, checked.

    Attributes:
        url: Where the buckets live: any URL that ``redis.Redis.from_url`` takes.
        limits: The table of limits: ``all``, ``queues``, ``tenants``, ``tasks``, and ``weights``.
        on_limit: ``"retry"``: a task refused by its tenant's or its own limit goes back to the broker until its
            turn comes. ``"hold"``: it stays in the worker, as it does when ``all`` or its queue refuses. ``"park"``:
            whatever refuses it, it waits in Redis, and is dispatched to a worker when its turn has come.
        on_store_error: While Redis is away: ``"hold"`` keeps tasks back, ``"admit"`` lets them start unlimited,
            ``"refuse"`` sends them back to the broker for a while.
        max_wait: Seconds a task may wait in all before it fails with ``ThrottleTimeout``; ``None``: for ever.
        max_hold: Seconds a message is held in a worker before it goes back to the broker; never more than a quarter of
            the broker's visibility timeout.
        max_countdown: Longest countdown in seconds; never more than half the visibility timeout. A task whose turn is
            further away returns early and is sent on with the place it has.
        tenant: Whom a task is for, where its decorator does not say.
        namespace: Prefix and hash tag of every key.
        timeout: Seconds to wait for an answer of Redis.
        backlog_limit: Most tasks parked of one queue; the others stay with the broker.
        lease: Seconds within which the tasks that were dispatched to a worker go to another when it dies.
        parked_state: Whether the result of a parked task says ``PARKED``, with its position and when it may start.
    """

    url: str | None = None
    limits: LimitTable = LimitTable()  # noqa: RUF009 - frozen
    on_limit: str = "retry"
    on_store_error: str = "hold"
    max_wait: float | None = None
    max_hold: float = 600.0
    max_countdown: float = 900.0
    tenant: TenantRule = None
    namespace: str = "bucketflow"
    timeout: float = 1.0
    backlog_limit: int = 1_000_000
    lease: float = 30.0
    parked_state: bool = False

    @classmethod
    def read(cls, given: Mapping[str, Any], conf: Mapping[str, Any]) -> Settings:
        """
        Check *given*, completed by what stands in *conf*.

        Args:
            given: Options by name.
            conf: ``app.conf`` or any mapping with ``bucketflow_...`` keys.

        Raises:
            ConfigErrors: It holds every mistake, each naming its entry.
        """
        values: dict[str, Any] = {}
        mistakes: list[ConfigError] = []
        for field in fields(cls):
            value = given.get(field.name)
            if value is None:
                value = conf.get(PREFIX + field.name)
            if value is None:
                continue
            try:
                values[field.name] = _CHECKS[field.name](field.name, value, mistakes)
            except ConfigError as mistake:
                mistakes.append(mistake)
        mistakes += _unknown(conf, {field.name for field in fields(cls)})  # at last: only now Celery has read its own
        if mistakes:
            raise ConfigErrors(mistakes)
        return cls(**values)


def _unknown(conf: Mapping[str, Any], known: set[str]) -> list[ConfigError]:
    """Return a mistake for every key of *conf* that looks like an option and is none."""
    # With a namespace, as Django's, Celery shows its keys as they stand there.
    prefix = (getattr(conf, "prefix", None) or "").lower() + PREFIX
    expected = "one of " + ", ".join(PREFIX + name for name in sorted(known))
    return [
        ConfigError(key, conf.get(key), expected)
        for key in map(str, conf)
        if key.lower().startswith(prefix) and key.lower().removeprefix(prefix) not in known
    ]


_Check: TypeAlias = Callable[[str, Any, "list[ConfigError]"], Any]


def _limits(_entry: str, value: Any, mistakes: list[ConfigError]) -> LimitTable:
    return LimitTable.parse(value, mistakes)


def _text(entry: str, value: object, _mistakes: list[ConfigError]) -> str:
    if not isinstance(value, str) or not value:
        raise ConfigError(entry, value, "a text of at least one character")
    return value


def _namespace(entry: str, value: object, mistakes: list[ConfigError]) -> str:
    text = _text(entry, value, mistakes)
    if set(text) & set("{}"):
        raise ConfigError(entry, value, "a text without braces: they mark the hash tag")
    return text


def _tenant(entry: str, value: object, _mistakes: list[ConfigError]) -> object:
    if not (callable(value) or (isinstance(value, str) and value)):
        raise ConfigError(entry, value, "an argument's name or a callable")
    return value


def _seconds(entry: str, value: object, _mistakes: list[ConfigError]) -> float:
    return check_number(entry, value, "a number of seconds above 0", above=True)


def _lease(entry: str, value: object, _mistakes: list[ConfigError]) -> float:
    return check_number(entry, value, "a number of seconds, 1 or more", minimum=1.0)


def _count(entry: str, value: object, _mistakes: list[ConfigError]) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(entry, value, "a whole number of tasks, 1 or more")
    return value


def _flag(entry: str, value: object, _mistakes: list[ConfigError]) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(entry, value, "True or False")
    return value


def _words(*choices: str) -> _Check:
    def check(entry: str, value: object, _mistakes: list[ConfigError]) -> object:
        one_of(entry, value, *choices)
        return value

    return check


_CHECKS: dict[str, _Check] = {
    "url": _text,
    "limits": _limits,
    "on_limit": _words("retry", "hold", "park"),
    "on_store_error": _words("hold", "admit", "refuse"),
    "max_wait": _seconds,
    "max_hold": _seconds,
    "max_countdown": _seconds,
    "tenant": _tenant,
    "namespace": _namespace,
    "timeout": _seconds,
    "backlog_limit": _count,
    "lease": _lease,
    "parked_state": _flag,
}
