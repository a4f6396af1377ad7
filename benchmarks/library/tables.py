"""The tables of the page, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.library.results import OURS, Entry, Row
from benchmarks.library.targets import BUSY, DEEP, LEASED, WAITING, TargetResult, against

Rows = Mapping[str, Row]
_ORDER = {"ours": 0, "baseline": 1, "peer": 2}
_NONE = "–"

#: The class and the algorithm that each library is measured with.
PEERS = {
    "aiolimiter": "`AsyncLimiter`, a leaky bucket; asyncio",
    "asynciolimiter": "`LeakyBucketLimiter`; asyncio",
    "bucketflow 0.1.0": "`TokenBucket`, `AsyncTokenBucket`, `HierarchicalTokenBucket`, `RedisTokenBucket`",
    "celery-heimdall": "its rate limit of a task, a fixed window; Redis",
    "dramatiq": "`rate_limits.BucketRateLimiter`, a fixed window; Redis",
    "limits": "`SlidingWindowCounterRateLimiter`, its cheapest sliding window",
    "pyrate-limiter": "`StateBucket` with `TokenBucket()`; on Redis with `RedisStateStore`",
    "rust-py-rate-limit": '`RateLimiter(algorithm="sliding")`; compiled, in memory',
    "steindamm": "`SyncTokenBucket`, `AsyncTokenBucket`; a refusal is an exception, which the benchmark catches",
    "throttled-py": "`token_bucket`, which counts in whole seconds; for waiting `gcra`, as in its documentation",
    "token-bucket": "`Limiter`; in memory",
}


def table(head: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table whose first *texts* columns are text; the others are numbers."""
    rule = [*["---"] * texts, *["---:"] * (len(head) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


def number(value: float | None, form: str = ",.0f", scale: float = 1) -> str:
    """Return *value* for display."""
    return _NONE if value is None else f"{value * scale:{form}}".replace("%", " %")


def bold(name: str) -> str:
    """Return the name of an implementation for display, ours in bold."""
    return f"**{name}**" if name.startswith(OURS) else name


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the names in *rows*: ours, baselines, peers. Ours with three levels is left out: it is a column."""
    entries = {entry.name: entry for row in rows for entry in row.entries if entry.name != DEEP}
    return sorted(entries, key=lambda name: (_ORDER[entries[name].role], name.lower()))


def grid(rows: Rows, heads: Mapping[str, str], cell: Callable[[Entry], str], last: Iterable[Sequence[str]] = ()) -> str:
    """Return a table of one line per implementation, one column per row; *heads*: column headings by row key."""
    present = {key: head for key, head in heads.items() if key in rows}
    if not present:
        return "Not measured."
    lines = []
    for name in names_of(rows[key] for key in present):
        entries = [rows[key].of(name) for key in present]
        lines.append([bold(name), *(_NONE if entry is None else cell(entry) for entry in entries)])
    return table(["", *present.values()], [*lines, *last])


def timing_grid(rows: Rows, heads: Mapping[str, str], cell: Callable[[Entry], str], *, rates: bool) -> str:
    """Return a grid that ends with our ratios to the baseline and to the best peer, of *rates* or of times."""
    present = [rows[key] for key in heads if key in rows]
    baselines = [row.value(OURS, "over_baseline") for row in present]
    peers = [against(row.peers()) if row.peers() else None for row in present]
    word = "the rate" if rates else "the time"
    to_baseline = [number(1 / ratio if ratio and rates else ratio, ".2f") for ratio in baselines]
    to_peer = [number(ratio if rates else 1 / ratio, ".2f") if ratio else _NONE for ratio in peers]
    last = [
        [f"*BucketFlow, × {word} of the baseline*", *to_baseline],
        [f"*BucketFlow, × {word} of the best peer*", *to_peer],
    ]
    return grid(rows, heads, cell, last)


def sections(rows: Rows) -> dict[str, str]:
    """Return the tables of the measurements, by their names in the template."""

    def nanoseconds(entry: Entry) -> str:
        return number(entry.values["seconds"], scale=1e9)

    def rate(entry: Entry) -> str:
        return number(entry.values["rate"])

    def computed(entry: Entry) -> str:
        return number(entry.values.get("cpu"), ".1f", 1e6)

    return {
        "memory": timing_grid(rows, MEMORY, nanoseconds, rates=False),
        "redis_threads": timing_grid(rows, THREADS, rate, rates=True),
        "redis_tasks": timing_grid(rows, TASKS, rate, rates=True),
        "redis_pure": timing_grid(rows, PURE, rate, rates=True),
        "lease": _lease(rows),
        "cpu": grid(rows, CPU, computed),
        "server": grid(rows, SERVER, lambda entry: number(entry.values["server_us"], ".1f")),
        "waiting": _waiting(rows),
        "outage": grid(rows, OUTAGE, _outage_cell),
        "memory_bytes": _columns(rows, "footprint-memory", "in memory", BYTES),
        "redis_bytes": _columns(rows, "footprint-redis", "in Redis", {**BYTES, "expires": "expires after, s"}),
        "celery": _celery(rows),
        "celery_limit": _limited(rows),
    }


MEMORY = {
    "memory-1": "1 thread",
    "memory-1-deep": "1 thread, 3 levels",
    "memory-4": "4 threads",
    "memory-4-deep": "4 threads, 3 levels",
    "memory-asyncio": "asyncio",
    "memory-asyncio-deep": "asyncio, 3 levels",
    "memory-refused": "1 thread, refused",
    "memory-asyncio-refused": "asyncio, refused",
}
THREADS = {
    "redis-1": "1 thread",
    "redis-1-deep": "1 thread, 3 levels",
    "redis-4": "4 threads",
    "redis-16": "16 threads",
    "redis-16-deep": "16 threads, 3 levels",
}
TASKS = {
    "redis-asyncio-1-on-1": "1 caller",
    "redis-asyncio-1-on-1-deep": "1 caller, 3 levels",
    "redis-asyncio-64-on-1": "64 callers, 1 bucket",
    "redis-asyncio-64-on-1-deep": "64 callers, 1 bucket, 3 levels",
    "redis-asyncio-64-on-64": "64 callers, 64 buckets",
}
PURE = {
    "pure-redis-1": "1 thread",
    "pure-redis-16": "16 threads",
    "pure-redis-asyncio-1-on-1": "asyncio, 1 caller",
    "pure-redis-asyncio-64-on-1": "64 callers, 1 bucket",
    "pure-redis-asyncio-64-on-64": "64 callers, 64 buckets",
}
CPU = {
    key: head
    for key, head in {**THREADS, **TASKS, "redis-asyncio-1-on-1": "asyncio, 1 caller"}.items()
    if not key.endswith("-deep")
}
SERVER = {
    f"server, {way}, {levels}": f"{way}, {levels}"
    for way in (BUSY, "16 threads", "1 thread")
    for levels in ("1 level", "3 levels")
}
OUTAGE = {"outage-gone": "gone", "outage-hung": "hung"}
BYTES = {"live": "just used", "idle": "idle"}


def target_table(results: Iterable[TargetResult]) -> str:
    """Return the table of targets."""
    words = {True: "yes", False: "**no**", None: _NONE}
    lines = [[one.subject, one.required, one.measured, words[one.met]] for one in results]
    return "\n".join(
        ["| measurement | target | measured | met |", "|---|---|---|---|", *(f"| {' | '.join(c)} |" for c in lines)]
    )


def listed(versions: Mapping[str, str]) -> str:
    """Return the versions in one line."""
    return " · ".join(f"{name} {number}" for name, number in versions.items())


def facts(head: str, pairs: Mapping[str, str]) -> str:
    """Return a table of names and their values."""
    return "\n".join([f"| {head} | |", "|---|---|", *(f"| {name} | {what} |" for name, what in pairs.items())])


def peers() -> str:
    """Return the table of the peers."""
    return facts("library", PEERS)


def left_out(rows: Iterable[Row]) -> str:
    """Return the list of the implementations that were left out, with row and reason."""
    lines = [f"- {row.title}: {name}: {why}" for row in rows for name, why in row.left_out.items()]
    return "\n".join(lines) if lines else "None."


def _lease(rows: Rows) -> str:
    lines = []
    for key in ("redis-lease", "redis-asyncio-lease"):
        row = rows.get(key)
        if row is not None:
            ratio = row.value(LEASED, "over_ours")
            rates = [number(row.value(name, "rate")) for name in (OURS, LEASED)]
            lines.append([row.title.split(",")[0], *rates, number(None if ratio is None else 1 / ratio, ".1f")])
    return table(["calls a second", "without", "with", "×"], lines) if lines else "Not measured."


def _waiting(rows: Rows) -> str:
    lines = []
    for key, waiters in WAITING.items():
        for name in names_of([rows[key]]) if key in rows else []:
            entry = rows[key].of(name)
            if entry is not None:
                values = entry.values
                refused = f"{values['refused']:.0f} calls without a token" if values["refused"] else ""
                remarks = ", ".join(filter(None, [refused, entry.note]))
                cells = [number(values["achieved"], ".3f"), number(values["spread"], ".0%")]
                lines.append([waiters, bold(name), *cells, number(values["longest"], ".2f"), remarks])
    head = ["waiters", "limiter", "used", "spread", "longest", "remarks"]
    return table(head, lines, texts=2) if lines else "Not measured."


def _outage_cell(entry: Entry) -> str:
    seconds = entry.values["seconds"]
    return "more than 15" if seconds is None else f"{seconds:.2f} `{entry.note}`"


def _columns(rows: Rows, key: str, head: str, columns: Mapping[str, str]) -> str:
    if key not in rows:
        return "Not measured."
    lines = []
    for name in names_of([rows[key]]):
        values = [rows[key].value(name, column) for column in columns]
        forms = [".1f" if column == "expires" else ",.0f" for column in columns]
        cells = [number(value, form) for value, form in zip(values, forms, strict=True)]
        lines.append([bold(name), *("never" if cell == _NONE else cell for cell in cells)])
    return table([head, *columns.values()], lines)


def _celery(rows: Rows) -> str:
    lines = []
    for key, what in {"celery": "tasks of 10 ms", "celery-empty": "empty tasks"}.items():
        for entry in rows[key].entries if key in rows else []:
            values = entry.values
            cells = [number(values["rate"]), number(values["cpu_ms"], ".2f")]
            cells += [number(values.get("over_plain"), ".1%"), number(values.get("per_trip"), ".2f")]
            lines.append([what, bold(entry.name), *cells])
    head = ["", "", "tasks a second", "CPU, ms a task", "of the plain rate", "admissions a round trip"]
    return table(head, lines, texts=2) if lines else "Not measured."


def _limited(rows: Rows) -> str:
    if "celery-limit" not in rows:
        return "Not measured."
    row = rows["celery-limit"]
    forms = {"deliveries": ".2f", "cpu_ms": ".1f", "achieved": ".1%", "excess": "+.2f", "started": ".0f"}
    heads = ["deliveries a task", "CPU, ms a task", "of the limit used", "worst window", "started"]
    lines = [
        [bold(entry.name), *(number(entry.values[column], form) for column, form in forms.items())]
        for entry in row.entries
    ]
    return table([row.title, *heads], lines)
