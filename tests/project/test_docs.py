"""README and docs match the code: examples run, tables hold what the code holds, links have targets."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import NamedTuple

import pytest
from architecture import LIBRARY, OF_THE_LIBRARY, OUTSIDE, THROTTLE
from processes import Process, wait_until

from bucketflow_celery import Limit, Throttle, throttled_task
from bucketflow_celery.config.limit import parse_limit
from bucketflow_celery.config.settings import PREFIX, Settings
from bucketflow_celery.stats import Stats

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*) ?(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(#[^)]*)?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def name_of(page):
    return page.name


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


class Block(NamedTuple):
    """A fenced block: ``python run`` is executed, ``python file=shop.py`` is first written to a file beside it."""

    language: str
    mark: str
    text: str


def blocks_of(page, redis_url="redis://localhost"):
    text = page.read_text().replace("redis://localhost", redis_url)
    return [Block(*match) for match in BLOCK.findall(text)]


def environment(directory):
    return {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}", "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def url(redis_server, redis_client):
    """Return the URL of an empty server, which replaces ``redis://localhost``."""
    assert redis_client.dbsize() == 0
    return redis_server.url.removesuffix("/0")


def write_files(page, redis_url, directory):
    for block in blocks_of(page, redis_url):
        if block.mark.startswith("file="):
            (directory / block.mark.removeprefix("file=")).write_text(block.text)


@each_page
def test_every_python_block_is_valid_python(page):
    for block in blocks_of(page):
        if block.language == "python":
            ast.parse(block.text)


@each_page
def test_every_python_block_is_run_or_written_to_a_file(page):
    marks = [block.mark for block in blocks_of(page) if block.language == "python"]
    assert all(mark == "run" or re.fullmatch(r"file=\w+\.py", mark) for mark in marks)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if any(block.mark == "run" for block in blocks_of(page))],
    ids=lambda page: page.name,
)
def test_the_examples_of_a_page_run_in_order(page, url, tmp_path):
    write_files(page, url, tmp_path)
    script = tmp_path / "page.py"
    script.write_text("\n".join(block.text for block in blocks_of(page, url) if block.mark == "run"))
    argv = [sys.executable, str(script)]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_first_example_of_the_readme_throttles_and_logs_as_shown(url, tmp_path):
    readme = ROOT / "README.md"
    write_files(readme, url, tmp_path)
    env = environment(tmp_path)
    command = ["-m", *next(b.text for b in blocks_of(readme) if b.text.startswith("$ celery")).split()[1:]]
    worker = Process([sys.executable, *command, "--concurrency", "2"], tmp_path, env)
    try:
        subprocess.run([sys.executable, "send.py"], cwd=tmp_path, env=env, check=True, timeout=30)
        wait_until(lambda: len(orders(worker)) == 20, timeout=40, pause=0.1)
    finally:
        worker.stop()
    assert sorted(orders(worker)) == sorted(
        (order, who) for order in map(str, range(10)) for who in ("acme", "umbrella")
    )
    shown = next(block.text for block in blocks_of(readme) if "refused by" in block.text).splitlines()
    logged = {shape(line) for line in worker.log.read_text().splitlines()}
    assert {shape(line) for line in shown} <= logged


def orders(worker):
    return re.findall(r"order (\d+) of (\w+)$", worker.log.read_text(), re.MULTILINE)


def shape(line):
    """Return *line* without what differs between runs: numbers, ids, and which of the two accounts it names."""
    line = re.sub(r"\[[0-9a-f-]{36}\]", "[id]", line.replace("umbrella", "acme"))
    return re.sub(r"\d+", "0", line)


@each_page
def test_every_link_has_a_target(page):
    for path, anchor in LINK.findall(page.read_text()):
        target = page.parent / path if path else page
        assert target.exists(), path
        assert not anchor or anchor in anchors_of(target), f"{path}{anchor}"


def anchors_of(page):
    """Return the anchors that a reader's browser finds for the headings of *page*."""
    return {
        "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(page.read_text())
    }


def test_the_guide_shows_mistakes_in_the_words_of_a_worker(tmp_path):
    guide = ROOT / "docs" / "guide.md"
    shown = next(block.text for block in blocks_of(guide) if block.text.startswith("bucketflow cannot start"))
    (tmp_path / "wrong.py").write_text(
        "from celery import Celery\n"
        "from bucketflow_celery import Throttle\n"
        "app = Celery('wrong', broker='memory://')\n"
        "app.conf.update(bucketflow_url='redis://localhost', bucketflow_max_wait=-1)\n"
        "app.conf.bucketflow_limits = {'queues': {'emails': 'fast'}}\n"
        "throttle = Throttle(app)\n"
    )
    argv = [sys.executable, "-m", "celery", "-A", "wrong", "worker", "--pool", "solo"]
    done = subprocess.run(
        argv, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert shown in done.stderr


def test_the_guide_names_every_permission_a_redis_user_needs(url, redis_client, tmp_path):
    guide = (ROOT / "docs" / "guide.md").read_text()
    sentence = guide[guide.index("**A user for Redis.**") :]
    named = set(re.findall(r"`([A-Z]+)`", sentence))
    rights = [f"+{name.lower()}" for name in named]
    patterns = ["~{bucketflow}:*", "&{bucketflow}:*"]
    redis_client.execute_command("ACL", "SETUSER", "limits", "on", ">secret", *patterns, *rights)
    try:
        write_files(ROOT / "docs" / "guide.md", url, tmp_path)
        script = (
            "from bucketflow_celery.scheduling.admit import AdmissionRequest\n"
            "from shop import app, throttle\n"
            "path = throttle.limits.path('emails', 'acme', 'shop.refund')\n"
            "ask = AdmissionRequest(path, 50.0, (0,) * len(path))\n"
            "store = throttle.store\n"
            "assert [store.admit([ask], '').run()[0].admitted for _ in range(2)] == [True, False]\n"
            "store.cancel_reservation(ask)\n"
            "throttle.set_limits({'all': '5/s'})\n"
            "assert store.admit([ask], '').run().version\n"
            "assert store.limits().table['all']['fill_rate'] == 5\n"
            "throttle.set_limits(None)\n"
            "assert store.announce_worker('w', 'x', 9.0).run() == (1, [])\n"
            "throttle.peek('emails', 'shop.refund')\n"
            "throttle.pause(queue='emails')\n"
            "throttle.resume(queue='emails')\n"
            "from bucketflow_celery.scheduling.model import *\n"
            "backlogs, version, lane = store.backlogs, store.limits().version, Lane('acme', 'shop.refund')\n"
            "backlogs.renew('w', 9).run()\n"
            "with backlogs.listen() as calls:\n"
            "    parcels = [ParkedMessage(bytes([n]), lane, b'message') for n in range(4)]\n"
            "    backlogs.park('emails', parcels, 9, busy=True).run()\n"
            "    assert 'emails' in [calls.get(1) for _ in range(9)]\n"
            "tasks = (lane.task,)\n"
            "known = backlogs.dispatch('emails', DispatchRequest('w', 2, (), (), tasks), version).run().next\n"
            "candidates = tuple(throttle.active_limits.tenant_spec('emails', one) for one in known)\n"
            "request = DispatchRequest('w', 2, throttle.active_limits.queue_path('emails'), candidates, tasks)\n"
            "one, two = backlogs.dispatch('emails', request, version).run().dispatched\n"
            "uids = one.owned.item.uid, two.owned.item.uid\n"
            "back = ((uids[1], lane, True),)\n"
            "told = Settlement('w', uids[:1], uids, back, (request.refund_of(one.owned),))\n"
            "assert backlogs.settle('emails', told).run() == 1\n"
            "assert not backlogs.leased_tasks('w').run()\n"
            "assert throttle.backlog()['emails'].count == 3\n"
            "assert throttle.purge('emails') == 3\n"
        )
        shop = tmp_path / "shop.py"
        address = url.removeprefix("redis://")
        limited = f'url="redis://limits:secret@{address}"'
        shop.write_text(shop.read_text().replace('url=f"{REDIS}/1"', limited).replace('"5/s"', "Limit(100, 5)"))
        assert limited in shop.read_text()
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True,
            timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    finally:
        redis_client.execute_command("ACL", "DELUSER", "limits")


def table(heading, page="docs/configuration.md", number=0):
    """Return the cells of a table under *heading*: rows without the table's own heading."""
    text = (ROOT / page).read_text()
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    tables = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [re.split(r" *(?<!\\)\| *", line.strip().strip("|").strip()) for line in tables[number].splitlines()[2:]]
    return [[cell.strip("`") for cell in row] for row in rows]


def shown(default):
    return "none" if default is None else repr(default).replace("'", '"')


def test_the_table_of_throttle_options_has_names_and_defaults_of_the_settings():
    defaults = {field.name: field.default for field in fields(Settings)}
    assert MISSING not in defaults.values()
    expected = [
        (name, PREFIX + name, "none" if name == "limits" else shown(default)) for name, default in defaults.items()
    ]
    assert [tuple(row[:3]) for row in table("Options of `Throttle`")] == expected


def test_the_tables_of_throttle_options_name_every_parameter_of_throttle():
    documented = [row[0] for number in (0, 1) for row in table("Options of `Throttle`", number=number)]
    assert sorted(documented) == sorted(set(inspect.signature(Throttle).parameters) - {"app"})


def test_the_table_of_throttled_task_options_has_names_and_defaults_of_its_parameters():
    parameters = inspect.signature(throttled_task).parameters.values()
    expected = [(p.name, shown(p.default)) for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert [tuple(row[:2]) for row in table("Options of `throttled_task`")] == expected


def test_the_table_of_counters_names_every_counter():
    assert [row[0] for row in table("Counters")] == list(Stats().snapshot())


@pytest.mark.parametrize("row", table("Errors in results"), ids=lambda row: row[0])
def test_an_error_carries_the_facts_of_its_row(row):
    module, _, name = row[0].rpartition(".")
    error = getattr(sys.modules[module], name)
    facts = list(inspect.signature(error).parameters)
    assert [fact.strip("` ") for fact in row[2].split(",")] == facts


def forms_of_a_limit():
    text = (ROOT / "docs" / "configuration.md").read_text().split("\n| a limit | means |\n")[1].split("\n\n")[0]
    return [form for row in text.splitlines()[1:] for form in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.mark.parametrize("form", forms_of_a_limit())
def test_every_documented_form_of_a_limit_is_accepted(form):
    limit = eval(form, {"Limit": Limit, "capacity": 10, "fill_rate": 0.5})
    assert (parse_limit("here", limit) is None) == (form == "None")


def listed(cell):
    """Return the names in a *cell* of a table; the outer backticks are stripped already."""
    return [] if cell == "–" else cell.split("`, `")


def import_rules():
    """Return the rows of the architecture: layer, layers of its package, layers of the library, distributions."""
    rows = [[f"bucketflow.{layer}", below, []] for layer, below in LIBRARY.items()]
    rows += [
        [f"bucketflow_celery.{layer}", below, ["foundation", *OF_THE_LIBRARY.get(layer, [])]]
        for layer, below in THROTTLE.items()
    ]
    return [[*row, sorted(OUTSIDE.get(row[0], ()))] for row in rows]


def test_the_import_rules_in_contributing_are_the_architecture():
    shown = [[row[0], *map(listed, row[1:])] for row in table("Import rules", "CONTRIBUTING.md")]
    assert shown == import_rules()


def closure(graph):
    """Return what each node of *graph* reaches, itself excluded."""
    reached = {}

    def visit(node):
        if node not in reached:
            reached[node] = set().union(*({below} | visit(below) for below in graph.get(node, ())))
        return reached[node]

    for node in graph:
        visit(node)
    return reached


def test_the_diagram_in_contributing_shows_what_each_layer_reaches():
    diagram = next(block.text for block in blocks_of(ROOT / "CONTRIBUTING.md") if block.language == "mermaid")
    throttle, library = diagram.split("subgraph bucketflow\n")
    library, between = library.split("end\n")[:2]
    shown = {f"bucketflow.{layer}": [] for layer in LIBRARY} | {f"bucketflow_celery.{layer}": [] for layer in THROTTLE}
    for part, tail, head in (
        (throttle, "bucketflow_celery", "bucketflow_celery"),
        (library, "bucketflow", "bucketflow"),
        (between, "bucketflow_celery", "bucketflow"),
    ):
        for above, below in re.findall(r"^ +(\w+)(?:\[.*?\])? --> (\w+)$", part.replace("lib_", ""), re.MULTILINE):
            shown[f"{tail}.{above}"].append(f"{head}.{below}")
    expected = {
        row[0]: [f"{row[0].partition('.')[0]}.{name}" for name in row[1]] + [f"bucketflow.{name}" for name in row[2]]
        for row in import_rules()
    }
    assert closure(shown) == closure(expected)


def test_contributing_has_a_row_for_every_folder_of_the_packages():
    folders = {
        f"{path.parent.relative_to(ROOT)}/"
        for package in ("bucketflow", "bucketflow_celery")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".lua")
    }
    rows = {row[0] for row in table("Architecture", "CONTRIBUTING.md")}
    assert rows - {"examples/", "benchmarks/"} == folders
