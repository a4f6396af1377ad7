"""Errors of the throttle, in addition to those of :mod:`bucketflow`."""

from __future__ import annotations

from collections.abc import Sequence

from bucketflow.errors import BucketflowError, ConfigError

__all__ = ["ConfigErrors", "LimitsChanged", "ThrottleTimeout"]


class ThrottleTimeout(BucketflowError):
    """
    The task failed without running, because its total wait exceeds ``max_wait``.

    Attributes:
        level: The binding level: ``all``, ``queue``, ``tenant`` or ``task``.
        wait: Total wait in seconds: what the task has waited, and what the level still requires.
        max_wait: Maximum total wait of the task, in seconds.
    """

    def __init__(self, level: str, wait: float, max_wait: float) -> None:
        super().__init__(level, wait, max_wait)
        self.level = level
        self.wait = wait
        self.max_wait = max_wait

    def __str__(self) -> str:
        return f"the {self.level} limit requires a wait of {self.wait:.3f} s, max_wait is {self.max_wait:g} s"


class LimitsChanged(BucketflowError):
    """
    The limits were not set, because they have changed since they were read. Nothing was written.

    Attributes:
        expected: The version that was read.
        current: The version in force.
    """

    def __init__(self, expected: str, current: str) -> None:
        super().__init__(expected, current)
        self.expected = expected
        self.current = current

    def __str__(self) -> str:
        return (
            f"the limits have changed since they were read: expected version {self.expected!r}, "
            f"version {self.current!r} is in force"
        )


class ConfigErrors(ConfigError):
    """
    All mistakes of a configuration.

    Attributes:
        mistakes: A :class:`~bucketflow.errors.ConfigError` for each mistake, in the order of the entries. Length >= 1.
    """

    def __init__(self, mistakes: Sequence[ConfigError]) -> None:
        super().__init__("the configuration", f"{len(mistakes)} mistake(s)", "none")
        self.args = (tuple(mistakes),)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)
