"""``python -m bucketflow_celery.demo``: see ``--help``."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """Run the demo; return its exit status."""
    missing = [name for name in ("matplotlib", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"the demo needs {' and '.join(missing)}: pip install 'bucketflow[demo]'\n")
        return 2
    from bucketflow_celery.demo.command import run  # noqa: PLC0415 - it cannot be imported without those

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
