"""The options that take one of a few words, as types. The checks of the configuration read the words from here."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from bucketflow.errors import ConfigError

__all__ = ["OnLimit", "OnStoreError", "check_choice"]

#: What happens to a task that a limit refuses.
OnLimit: TypeAlias = Literal["retry", "hold", "park"]

#: What happens to tasks while the store is unavailable.
OnStoreError: TypeAlias = Literal["hold", "admit", "refuse", "local"]


def check_choice(entry: str, value: object, choices: object) -> None:
    """
    Check that *value* is one of the words of *choices*.

    Args:
        entry: Name of the option in the error.
        value: The value to check.
        choices: A ``Literal`` of this module.

    Raises:
        ConfigError: *value* is another one. The error names *entry* and the words.
    """
    words = get_args(choices)
    if not isinstance(value, str) or value not in words:
        raise ConfigError(entry, value, "one of " + ", ".join(map(repr, words)))
