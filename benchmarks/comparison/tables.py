"""The tables of the document, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from comparison.goals import BUSY, DEEP, LEASED, WAITING, Verdict, against
from comparison.results import OURS, Entry, Row

Rows = Mapping[str, Row]
_ORDER = {"ours": 0, "floor": 1, "peer": 2}
_NONE = "–"

#: By what, and as what, each library takes part.
PEERS = {
    "aiolimiter": "`AsyncLimiter`, a leaky bucket; asyncio",
    "asynciolimiter": "`LeakyBucketLimiter`; asyncio",
    "bucketflow 0.1.0": "`TokenBucket`, `AsyncTokenBucket`, `HierarchicalTokenBucket`, `RedisTokenBucket`",
    "celery-heimdall": "its rate limit of a task, a fixed window; Redis",
    "dramatiq": "`rate_limits.BucketRateLimiter`, a fixed window; Redis",
    "limits": "`SlidingWindowCounterRateLimiter`, its cheapest that slides",
    "pyrate-limiter": "`StateBucket` with `TokenBucket()`; on Redis with `RedisStateStore`",
    "rust-py-rate-limit": '`RateLimiter(algorithm="sliding")`; compiled, in memory',
    "steindamm": "`SyncTokenBucket`, `AsyncTokenBucket`; they raise instead of refusing, which the row catches",
    "throttled-py": "`token_bucket`, which counts in whole seconds; where it waits, `gcra`, as its documentation does",
    "token-bucket": "`Limiter`; in memory",
}


def table(head: Sequence[str], lines: Iterable[Sequence[str]], texts: int = 1) -> str:
    """Return a table; its first columns are *texts*, the others are numbers."""
    rule = [*["---"] * texts, *["---:"] * (len(head) - texts)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rule, *lines])


def number(value: float | None, form: str = ",.0f", scale: float = 1) -> str:
    """Return *value* as the tables show it."""
    return _NONE if value is None else f"{value * scale:{form}}".replace("%", " %")


def bold(name: str) -> str:
    """Return the name of a contestant, ours in bold."""
    return f"**{name}**" if name.startswith(OURS) else name


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the names in *rows*: ours, the floors, the peers; three levels have a column of their own."""
    entries = {entry.name: entry for row in rows for entry in row.entries if entry.name != DEEP}
    return sorted(entries, key=lambda name: (_ORDER[entries[name].role], name.lower()))


def grid(rows: Rows, heads: Mapping[str, str], cell: Callable[[Entry], str], last: Iterable[Sequence[str]] = ()) -> str:
    """Return a table with a line a contestant and a column a row; *heads*: the rows' keys and what stands above."""
    there = {key: head for key, head in heads.items() if key in rows}
    if not there:
        return "Not measured."
    lines = []
    for name in names_of(rows[key] for key in there):
        entries = [rows[key].of(name) for key in there]
        lines.append([bold(name), *(_NONE if entry is None else cell(entry) for entry in entries)])
    return table(["", *there.values()], [*lines, *last])


def raced(rows: Rows, heads: Mapping[str, str], cell: Callable[[Entry], str], *, rates: bool) -> str:
    """Return a grid that ends with our ratios to the floor and to the best peer: of *rates*, or of times."""
    there = [rows[key] for key in heads if key in rows]
    floors = [row.value(OURS, "over_floor") for row in there]
    peers = [against(row.peers()) if row.peers() else None for row in there]
    word = "the rate" if rates else "the time"
    to_floor = [number(1 / ratio if ratio and rates else ratio, ".2f") for ratio in floors]
    to_peer = [number(ratio if rates else 1 / ratio, ".2f") if ratio else _NONE for ratio in peers]
    last = [
        [f"*BucketFlow, × {word} of the floor*", *to_floor],
        [f"*BucketFlow, × {word} of the best peer*", *to_peer],
    ]
    return grid(rows, heads, cell, last)


def sections(rows: Rows) -> dict[str, str]:
    """Return the tables of the measurements by their names in the template."""

    def nanoseconds(entry: Entry) -> str:
        return number(entry.values["seconds"], scale=1e9)

    def rate(entry: Entry) -> str:
        return number(entry.values["rate"])

    def computed(entry: Entry) -> str:
        return number(entry.values.get("cpu"), ".1f", 1e6)

    return {
        "memory": raced(rows, MEMORY, nanoseconds, rates=False),
        "redis_threads": raced(rows, THREADS, rate, rates=True),
        "redis_tasks": raced(rows, TASKS, rate, rates=True),
        "redis_pure": raced(rows, PURE, rate, rates=True),
        "lease": _lease(rows),
        "cpu": grid(rows, CPU, computed),
        "server": grid(rows, SERVER, lambda entry: number(entry.values["server_us"], ".1f")),
        "waiting": _waiting(rows),
        "outage": grid(rows, OUTAGE, _news),
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


def goals(verdicts: Iterable[Verdict]) -> str:
    """Return the table of the goals."""
    words = {True: "yes", False: "**no**", None: _NONE}
    lines = [[one.row, one.wanted, one.measured, words[one.held]] for one in verdicts]
    return "\n".join(
        ["| row | goal | measured | held |", "|---|---|---|---|", *(f"| {' | '.join(c)} |" for c in lines)]
    )


def listed(versions: Mapping[str, str]) -> str:
    """Return the versions in a line."""
    return " · ".join(f"{name} {number}" for name, number in versions.items())


def facts(head: str, pairs: Mapping[str, str]) -> str:
    """Return a table of names and what they are."""
    return "\n".join([f"| {head} | |", "|---|---|", *(f"| {name} | {what} |" for name, what in pairs.items())])


def who() -> str:
    """Return the table of the peers."""
    return facts("library", PEERS)


def left_out(rows: Iterable[Row]) -> str:
    """Return who was left out of which row, and why."""
    lines = [f"- {row.title}: {name}: {why}" for row in rows for name, why in row.left_out.items()]
    return "\n".join(lines) if lines else "Nobody."


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
    for key, place in WAITING.items():
        for name in names_of([rows[key]]) if key in rows else []:
            entry = rows[key].of(name)
            if entry is not None:
                values = entry.values
                refused = f"{values['refused']:.0f} came back without a token" if values["refused"] else ""
                remarks = ", ".join(filter(None, [refused, entry.note]))
                cells = [number(values["achieved"], ".3f"), number(values["spread"], ".0%")]
                lines.append([place, bold(name), *cells, number(values["longest"], ".2f"), remarks])
    head = ["who", "limiter", "used", "spread", "longest", "remarks"]
    return table(head, lines, texts=2) if lines else "Not measured."


def _news(entry: Entry) -> str:
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
