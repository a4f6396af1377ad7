"""Validation of the nested mapping that describes a hierarchy of buckets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bucketflow.errors import ConfigError
from bucketflow.limit import Limit
from bucketflow.validation import check_initial_tokens

__all__ = ["BucketConfig", "parse_hierarchy"]

_KEYS = ("capacity", "children", "fill_rate", "initial_tokens", "name")
_REQUIRED = ("name", "capacity", "fill_rate")


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """
    One bucket of a hierarchy.

    Attributes:
        name: Its name, unique in the hierarchy.
        parent: Name of the bucket above it; ``None`` for the root.
        limit: Capacity in tokens; fill rate in tokens per second.
        initial_tokens: Tokens at the start, from 0 to the capacity; ``None``: full.
    """

    name: str
    parent: str | None
    limit: Limit
    initial_tokens: float | None


def parse_hierarchy(config: object) -> list[BucketConfig]:
    """
    Return the buckets that *config* describes, each parent before its children.

    Args:
        config: The root as a mapping: ``name``, ``capacity``, ``fill_rate``, and optionally ``initial_tokens`` and
            ``children``, a list of such mappings.

    Raises:
        ConfigError: A key is missing or unknown, a name is used twice, or a value has the wrong type or range. It
            names the entry by its path, as in ``config.children[1].fill_rate``.
    """
    buckets: dict[str, BucketConfig] = {}
    _add(buckets, "config", config, None)
    return list(buckets.values())


def _add(buckets: dict[str, BucketConfig], entry: str, config: object, parent: str | None) -> None:
    """Add the bucket at *entry* and all its descendants to *buckets*."""
    config = _checked(entry, config)
    name = config["name"]
    if not isinstance(name, str) or not name or name in buckets:
        raise ConfigError(f"{entry}.name", name, "a non-empty name that is unique in the hierarchy")
    try:
        # Limit checks the type of the numbers too.
        limit = Limit(config["capacity"], config["fill_rate"])  # type: ignore[arg-type]
        initial_tokens = check_initial_tokens(config.get("initial_tokens"), limit.capacity)
    except ConfigError as error:
        raise ConfigError(f"{entry}.{error.entry}", error.value, error.expected) from None
    buckets[name] = BucketConfig(name, parent, limit, initial_tokens)
    children = config.get("children", ())
    if not isinstance(children, (list, tuple)):
        raise ConfigError(f"{entry}.children", children, "a list of buckets")
    for index, child in enumerate(children):
        _add(buckets, f"{entry}.children[{index}]", child, name)


def _checked(entry: str, config: object) -> Mapping[str, object]:
    """Return *config* if it is a mapping with valid keys."""
    if not isinstance(config, Mapping):
        raise ConfigError(entry, config, f"a mapping with the keys {', '.join(_KEYS)}")
    for key, value in config.items():
        if key not in _KEYS:
            raise ConfigError(f"{entry}.{key}", value, f"one of the keys {', '.join(_KEYS)}")
    for key in _REQUIRED:
        if key not in config:
            raise ConfigError(f"{entry}.{key}", None, "a value, but it is missing")
    return config
