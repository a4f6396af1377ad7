# Every target makes the virtual environment it needs, once; a second call finds it ready.
#
#   make demo       see real workers obey a hierarchy of limits, in under a minute
#   make test       the whole suite
#   make lint       ruff and mypy
#   make bench      the measurements of README.md
#   make test-all   the suite on every Python here, against Redis and against Valkey
#   make clean      remove what the others made
#
# PYTHON=/path/to/python chooses the interpreter. ARGS="..." goes to what is run: ARGS="-k outage -x" to pytest,
# ARGS=my.csv to the demo.

PYTHON ?= python3
ARGS ?=
PIP = -m pip --disable-pip-version-check --quiet

.PHONY: help demo test lint bench test-all clean

help:
	@sed -n '3,9s/^# *//p' Makefile

demo: .venv-demo/ready
	.venv-demo/bin/python -m bucketflow_celery.demo $(ARGS)

test: .venv/ready
	.venv/bin/python -m pytest $(ARGS)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv/ready
	.venv/bin/python benchmarks/throttle.py $(ARGS)

test-all:
	tools/test-all "$(PYTHON)" $(ARGS)

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: EXTRA = dev
.venv-demo/ready: EXTRA = demo

.venv/ready .venv-demo/ready: pyproject.toml tools/pythons
	@python=$$(tools/pythons "$(PYTHON)" | head -n 1); \
	if [ -z "$$python" ]; then \
	    echo "BucketFlow needs Python 3.10 or later with its venv module, and none was found." >&2; \
	    echo "Install one (Debian: apt-get install python3-venv), or say where it is: make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	fi; \
	echo "making $(@D) with $$python"; \
	"$$python" -m venv --clear $(@D)
	@$(@D)/bin/python $(PIP) install --editable '.[$(EXTRA)]'
	@touch $@
