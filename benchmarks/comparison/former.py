"""bucketflow 0.1.0, which has the name of what it is compared with, loaded from a folder of its own."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

NAME = "bucketflow"
#: Where ``make bench`` has put it.
FOLDER = Path(sys.prefix) / "bucketflow-0.1.0"


def load(*submodules: str, folder: Path = FOLDER) -> list[ModuleType]:
    """
    Import *submodules* of the old package; the current one is what ``import bucketflow`` means before and after.

    Raises:
        ImportError: It is not there.
    """
    if not (folder / NAME).is_dir():
        raise ImportError(f"no {NAME} 0.1.0 in {folder}")
    current = _taken_out()
    sys.path.insert(0, str(folder))
    try:
        modules = [importlib.import_module(f"{NAME}.{submodule}") for submodule in submodules]
        strangers = [module.__name__ for module in modules if folder not in Path(str(module.__file__)).parents]
        if strangers:
            raise ImportError(f"not of {folder}: {strangers}")
        return modules
    finally:
        sys.path.remove(str(folder))
        _taken_out()
        sys.modules.update(current)


def _taken_out() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]
    return {name: sys.modules.pop(name) for name in ours}
