"""Lua scripts: how a script is assembled from the ``.lua`` files of a package and from Python constants."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TypeAlias

__all__ = ["Constants", "LuaFile", "Script", "load_script"]

#: A file ``lua/<name>.lua``, as its package and its name.
LuaFile: TypeAlias = "tuple[str, str]"

#: Names and values of constants. Hashable, because a script is cached by what it is made of.
Constants: TypeAlias = "frozenset[tuple[str, float]]"


@dataclass(frozen=True, slots=True)
class Script:
    """
    A Lua script as the server runs it.

    Attributes:
        name: Name of the operation.
        text: Source of the whole script.
        sha: SHA1 of *text*, the name under which the server caches the script.
    """

    name: str
    text: str = field(repr=False)
    sha: str

    @classmethod
    def of(cls, name: str, text: str) -> Script:
        """Return the script whose source is *text*."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def load_script(
    package: str, name: str, preludes: tuple[LuaFile, ...] = (), constants: Constants = frozenset()
) -> Script:
    """
    Return the script of one operation. Its files are read once per process.

    The source is a line ``local NAME = value`` for each constant, then the preludes, then the operation.

    Args:
        package: Package that holds the operation, such as ``"bucketflow"``.
        name: Name of the operation, whose file is ``lua/<name>.lua``.
        preludes: Files whose functions the operation uses, in order. Length >= 0.
        constants: Constants that the script shares with Python.

    Raises:
        FileNotFoundError: *package* has no such file.
    """
    shared = "".join(f"local {constant} = {value!r}\n" for constant, value in sorted(constants))
    return Script.of(name, shared + "\n".join(_source(*file) for file in (*preludes, (package, name))))


def _source(package: str, name: str) -> str:
    return files(package).joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
