"""Lua operations: package data, with ``gcra.lua`` in front, so that all of them share one arithmetic."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

__all__ = ["Script", "load_script"]


@dataclass(frozen=True, slots=True)
class Script:
    """
    One operation, as the server gets it.

    Attributes:
        name: What the operation is called.
        text: ``gcra.lua`` and the operation.
        sha: The SHA1 of *text*, by which the server knows it.
    """

    name: str
    text: str = field(repr=False)
    sha: str

    @classmethod
    def compose(cls, name: str, operation: str) -> Script:
        """Return the script of *operation*, which may use every function of ``gcra.lua``."""
        return cls.of(name, f"{_source('bucketflow', 'gcra')}\n{operation}")

    @classmethod
    def of(cls, name: str, text: str) -> Script:
        """Return the script whose whole text is *text*."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def load_script(package: str, name: str, *preludes: str) -> Script:
    """
    Return the operation that *package* keeps in ``lua/<name>.lua``, behind its own ``lua/level.lua``; read once.

    ``consume.lua`` stands alone: it is called so often that the functions it would not use are worth leaving out.

    Args:
        package: The package that holds the file, such as ``"bucketflow"``.
        name: The operation.
        preludes: Other files of *package* that go between the two.
    """
    if (package, name) == ("bucketflow", "consume"):
        return Script.of(name, _source(package, name))
    own = () if package == "bucketflow" else ("level",)
    return Script.compose(name, "\n".join(_source(package, part) for part in (*own, *preludes, name)))


def _source(package: str, name: str) -> str:
    return files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
