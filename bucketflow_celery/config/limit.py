"""The limit of a level, and the forms in which the user may write it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bucketflow.errors import ConfigError
from bucketflow.limit import Limit as BaseLimit

__all__ = ["Limit", "LimitSpec", "parse_limit"]
_SPEC = 'a rate such as "100/s", a Limit(capacity, fill_rate), None, or {"rate": ..., "capacity": ..., "shared": ...}'
_FIELDS = {"rate", "capacity", "fill_rate", "shared"}


@dataclass(frozen=True, slots=True)
class Limit(BaseLimit):
    """
    A limit, and the scope of its bucket.

    Args:
        capacity: Capacity in tokens: the largest burst. Above 0.
        fill_rate: Fill rate in tokens per second. Above 0.
        shared: Whether the whole fleet shares one bucket, such as that of an API key that several queues use. Otherwise
            buckets are scoped to their parent: one for each queue, and for a task one for each tenant.
    """

    shared: bool = False

    def __post_init__(self) -> None:
        # Not super(): without arguments it fails in a slotted dataclass.
        BaseLimit.__post_init__(self)
        if not isinstance(self.shared, bool):
            raise ConfigError("shared", self.shared, "True or False")

    @classmethod
    def parse(cls, text: str, capacity: float | None = None, *, shared: bool = False) -> Limit:
        """Return the limit that *text* writes, such as ``"100/s"``: see :meth:`bucketflow.Limit.parse`."""
        plain = BaseLimit.parse(text, capacity)
        return cls(plain.capacity, plain.fill_rate, shared)


LimitSpec: TypeAlias = "str | BaseLimit | Mapping[str, Any] | None"


def parse_limit(entry: str, spec: LimitSpec) -> Limit | None:
    """
    Return the limit that *spec* writes; ``None`` for no limit.

    Args:
        entry: Where *spec* stands in the configuration, for the error.
        spec: What the user wrote.

    Raises:
        ConfigError: *spec* has no valid form. The error names *entry*, the value and the forms that are valid.
    """
    try:
        if spec is None or isinstance(spec, Limit):
            return spec
        if isinstance(spec, BaseLimit):
            return Limit(spec.capacity, spec.fill_rate)
        if isinstance(spec, str):
            return Limit.parse(spec)
        if isinstance(spec, Mapping) and set(spec) <= _FIELDS:
            shared = spec.get("shared", False)
            if "rate" in spec and "fill_rate" not in spec:
                return Limit.parse(spec["rate"], spec.get("capacity"), shared=shared)
            if "rate" not in spec and {"capacity", "fill_rate"} <= set(spec):
                return Limit(spec["capacity"], spec["fill_rate"], shared)
    except ConfigError as error:
        raise ConfigError(f"{entry}: {error.entry}", error.value, error.expected) from None
    raise ConfigError(entry, spec, _SPEC)
