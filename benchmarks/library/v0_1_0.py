"""bucketflow 0.1.0, loaded from a folder of its own because the current package has the same name."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

NAME = "bucketflow"
#: Where ``make bench`` installs it.
FOLDER = Path(sys.prefix) / "bucketflow-0.1.0"


def load(*submodules: str, folder: Path = FOLDER) -> list[ModuleType]:
    """
    Import *submodules* of the old package; ``import bucketflow`` still means the current one afterwards.

    Raises:
        ImportError: The old package is not installed.
    """
    if not (folder / NAME).is_dir():
        raise ImportError(f"no {NAME} 0.1.0 in {folder}")
    current = _removed_modules()
    sys.path.insert(0, str(folder))
    try:
        modules = [importlib.import_module(f"{NAME}.{submodule}") for submodule in submodules]
        others = [module.__name__ for module in modules if folder not in Path(str(module.__file__)).parents]
        if others:
            raise ImportError(f"not loaded from {folder}: {others}")
        return modules
    finally:
        sys.path.remove(str(folder))
        _removed_modules()
        sys.modules.update(current)


def _removed_modules() -> dict[str, ModuleType]:
    ours = [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]
    return {name: sys.modules.pop(name) for name in ours}
