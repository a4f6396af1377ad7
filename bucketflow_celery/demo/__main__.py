"""Entry point of ``python -m bucketflow_celery.demo``; ``--help`` lists its options."""

from __future__ import annotations

import importlib.util
import sys


def main() -> int:
    """Run the demo and return its exit status; 2 if a package that it needs is not installed."""
    missing = [name for name in ("matplotlib", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(f"the demo needs {' and '.join(missing)}: pip install 'bucketflow[demo]'\n")
        return 2
    from bucketflow_celery.demo.command import run  # noqa: PLC0415 - its imports fail without these packages

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
