"""What the throttle raises beside the errors of :mod:`bucketflow`."""

from __future__ import annotations

from collections.abc import Sequence

from bucketflow.errors import BucketflowError, ConfigError

__all__ = ["ConfigErrors", "ThrottleTimeout"]


class ThrottleTimeout(BucketflowError):
    """
    The task would have waited longer than its ``max_wait``, so it was given up; it has not run.

    Attributes:
        level: The level that binds: ``all``, ``queue``, ``tenant`` or ``task``.
        wait: Seconds it would have waited in all.
        max_wait: Seconds it was allowed to.
    """

    def __init__(self, level: str, wait: float, max_wait: float) -> None:
        super().__init__(level, wait, max_wait)
        self.level = level
        self.wait = wait
        self.max_wait = max_wait

    def __str__(self) -> str:
        return f"the {self.level} limit would make it wait {self.wait:.3f} s, max_wait is {self.max_wait:g} s"


class ConfigErrors(ConfigError):
    """
    Every mistake of a configuration at once.

    Attributes:
        mistakes: One :class:`~bucketflow.errors.ConfigError` a mistake; length >= 1, in the order of the entries.
    """

    def __init__(self, mistakes: Sequence[ConfigError]) -> None:
        super().__init__("the configuration", f"{len(mistakes)} mistake(s)", "none")
        self.args = (tuple(mistakes),)
        self.mistakes = tuple(mistakes)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)
