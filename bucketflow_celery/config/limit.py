"""A limit of a level, as the user writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from bucketflow import limit as core
from bucketflow.errors import ConfigError

__all__ = ["Limit", "LimitSpec", "parse_limit"]
_SPEC = 'a rate such as "100/s", a Limit(capacity, fill_rate), None, or {"rate": ..., "capacity": ..., "shared": ...}'
_FIELDS = {"rate", "capacity", "fill_rate", "shared"}


@dataclass(frozen=True, slots=True)
class Limit(core.Limit):
    """
    A limit that can say whose it is.

    Args:
        capacity: Most tokens the bucket holds: the burst. Above 0.
        fill_rate: Tokens per second. Above 0.
        shared: One bucket for the whole fleet, whatever the levels above it: an API key that several queues use.
            Otherwise a bucket belongs to its parent, and each queue (each tenant, for a task) has one of its own.
    """

    shared: bool = False

    def __post_init__(self) -> None:
        # Without arguments super() cannot see through a slotted dataclass.
        core.Limit.__post_init__(self)
        if not isinstance(self.shared, bool):
            raise ConfigError("shared", self.shared, "True or False")

    @classmethod
    def parse(cls, text: str, capacity: float | None = None, *, shared: bool = False) -> Limit:
        """Read ``"100/s"`` and its like: see :meth:`bucketflow.Limit.parse`."""
        plain = core.Limit.parse(text, capacity)
        return cls(plain.capacity, plain.fill_rate, shared)


LimitSpec: TypeAlias = "str | core.Limit | Mapping[str, Any] | None"


def parse_limit(entry: str, spec: LimitSpec) -> Limit | None:
    """
    Turn what the user wrote at *entry* into a limit; ``None`` means "no limit here".

    Raises:
        ConfigError: It names *entry*, what stands there and what would be right.
    """
    try:
        if spec is None or isinstance(spec, Limit):
            return spec
        if isinstance(spec, core.Limit):
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
