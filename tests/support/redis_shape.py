"""The state of a backlog in Redis, as plain Python values."""

from __future__ import annotations

import struct

from bucketflow.redis_client.scripts import Script, load_script
from bucketflow_celery.scheduling.model import Lane, ParkedTask
from bucketflow_celery.store.redis_backlog import lane_key
from bucketflow_celery.store.scripts import CONSTANTS, LEVEL

_PRELUDE = load_script("bucketflow_celery.store", "backlog", LEVEL, CONSTANTS).text

#: The records of all tenants: name, tag, turn, cost, and of each type: task, turn, ranks and lengths of its lanes.
RECORDS = Script.of(
    "records",
    _PRELUDE
    + """
    local reply, entries = {}, redis.call('HGETALL', TENANTS)
    for at = 1, #entries, 2 do
      local tenant, types = cmsgpack.unpack(entries[at + 1]), {}
      for task, kind in pairs(tenant.types) do
        local lanes = {}
        for rank, length in pairs(kind.lanes) do
          lanes[#lanes + 1] = {rank, length}
        end
        types[#types + 1] = {task, kind.turn, lanes}
      end
      reply[#reply + 1] = {entries[at], exact(tenant.tag), tenant.turn, exact(tenant.cost), types}
    end
    return reply
    """,
)


def packed_level(state):
    """Return *state* of a level as Redis stores it."""
    debt = struct.pack("<dd", state.debt_at, state.debt_rate) if state.debt_rate else b""
    return struct.pack("<dddd", state.full_at, state.reserved_until, state.capacity, state.fill_rate) + debt


def shape_of(store, queue, versions):
    """Return the state of *queue* in the Redis *store*. *versions* are pairs, of which the second is its own."""
    backlogs = store.backlogs
    client = next(iter(store.runner._topology.nodes.values())).client
    keys = backlogs._keys(queue).keys
    _, messages, _, ready, delayed, idle, polls, dedup, meta = keys[:9]
    fields = {name.decode(): value.decode() for name, value in client.hgetall(meta).items()}
    return {
        "tenants": {
            name.decode(): (float(tag), turn, float(cost), {
                task.decode(): (
                    of_type,
                    {rank: _items(client, backlogs, queue, Lane(name.decode(), task.decode(), rank), length)
                     for rank, length in lanes},
                )
                for task, of_type, lanes in types
            })
            for name, tag, turn, cost, types in client.eval(RECORDS.text, len(keys), *keys)
        },
        "ready": _ready(client, ready),
        "types": {task.decode(): worker.decode() for task, worker in client.hgetall(keys[12]).items()},
        "delayed": _scores(client, delayed),
        "idle": _scores(client, idle),
        "polls": _scores(client, polls),
        "dedup": dict(client.zrange(dedup, 0, -1, withscores=True)),
        "messages": client.hgetall(messages),
        "meta": (
            float(fields.get("virtual", 0)),
            int(fields.get("count", 0)),
            float(fields.get("notified_at", 0)),
            [pair[1] for pair in versions].index(fields.get("version", "")),
        ),
    }  # fmt: skip


def _ready(client, key):
    found = {}
    for member in client.zrange(key, 0, -1):
        task, _, rest = member.partition(b"\0")
        (tag,) = struct.unpack_from(">d", rest)
        found.setdefault(task.decode(), {})[rest[8:].decode()] = tag
    return found


def _scores(client, key):
    return {name.decode(): score for name, score in client.zrange(key, 0, -1, withscores=True)}


def _items(client, backlogs, queue, lane, length):
    items = []
    for packed in client.lrange(lane_key(backlogs._prefix, queue, lane), 0, -1):
        redelivered, since, cost, deadline = struct.unpack_from("<Bddd", packed)
        items.append(ParkedTask(packed[25:], since, cost, deadline, redelivered == 1))
    assert len(items) == length
    return items
