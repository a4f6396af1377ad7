"""The packages of the extras, and the error for one that is not installed."""

from __future__ import annotations

__all__ = ["explained"]

#: The packages that an import may find missing, by the extra that installs them.
_PACKAGES = {"distributed": {"redis"}, "celery": {"redis", "celery", "kombu", "billiard", "vine"}}


def explained(error: ImportError, package: str, extra: str) -> ImportError:
    """
    Return *error*, or one that says how to install what is missing.

    Args:
        error: Raised while *package* was imported.
        package: The package of this distribution that could not be imported.
        extra: Name of the extra that it requires.
    """
    missing = (error.name or "").partition(".")[0]
    if missing and missing not in _PACKAGES[extra]:
        return error
    reason = f"{package} requires {missing or 'a package'}, which cannot be imported ({error})"
    kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
    return kind(f'{reason}: pip install "bucketflow[{extra}]"', name=error.name, path=error.path)
