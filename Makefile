# Every target makes the virtual environment it needs, once; a second call finds it ready.
#
#   make demo       see real workers obey a hierarchy of limits, in under a minute
#   make test       the whole suite: most of it in four processes, then the timing tests alone
#   make test-fast  the tests that need no server
#   make lint       ruff and mypy
#   make bench      measure beside other libraries, in ten minutes, and write docs/benchmarks.md; ARGS="redis waiting-tasks"
#   make bench-celery   the measurements of README.md
#   make test-all   the suite on every Python here, against Redis and against Valkey
#   make clean      remove what the others made
#
# PYTHON=/path/to/python chooses the interpreter. ARGS="..." goes to what is run: ARGS="-k outage -x" to pytest,
# ARGS=my.csv to the demo.

PYTHON ?= python3
ARGS ?=
PIP = -m pip --disable-pip-version-check --quiet

.PHONY: help demo test test-fast lint bench bench-celery test-all clean

help:
	@sed -n '3,11s/^# *//p' Makefile

demo: .venv-demo/ready
	.venv-demo/bin/python -m bucketflow_celery.demo $(ARGS)

test: .venv/ready
	tools/test .venv/bin/python $(ARGS)

test-fast: .venv/ready
	.venv/bin/python -m pytest -n 2 --no-servers tests/bucketflow tests/bucketflow_celery tests/project/test_imports.py $(ARGS)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench: .venv-bench/peers
	.venv-bench/bin/python -m benchmarks.library $(ARGS)

bench-celery: .venv/ready
	.venv/bin/python -m benchmarks.throttle.rate_limits $(ARGS)

test-all:
	tools/test-all "$(PYTHON)" $(ARGS)

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist demo-output bench-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/ready: EXTRA = dev
.venv-demo/ready .venv-bench/ready: EXTRA = demo

# bucketflow 0.1.0 has our own name, so it goes into a folder of its own.
.venv-bench/peers: .venv-bench/ready benchmarks/requirements.txt
	@.venv-bench/bin/python $(PIP) install --requirement benchmarks/requirements.txt
	@.venv-bench/bin/python $(PIP) install --no-deps --upgrade --target .venv-bench/bucketflow-0.1.0 bucketflow==0.1.0
	@touch $@

.venv/ready .venv-demo/ready .venv-bench/ready: pyproject.toml tools/pythons
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
