"""The commands that a user of Redis or Valkey must be allowed to run, and the check for them."""

from __future__ import annotations

from bucketflow.errors import StoreAccessDenied
from bucketflow.redis_client.runner import ScriptRunner
from bucketflow_celery.store.scripts import level_script

__all__ = ["LEVEL_COMMANDS", "PARKING_COMMANDS", "check_access"]

#: Commands of the scripts that every worker runs.
LEVEL_COMMANDS = (
    "DEL",
    "EXISTS",
    "GET",
    "HEXISTS",
    "MGET",
    "PEXPIRE",
    "PUBLISH",
    "SADD",
    "SET",
    "SMEMBERS",
    "SREM",
    "TIME",
    "ZADD",
    "ZRANGE",
    "ZREMRANGEBYSCORE",
)
#: Further commands of the scripts that a worker runs which parks tasks.
PARKING_COMMANDS = (
    "HDEL",
    "HGET",
    "HGETALL",
    "HINCRBY",
    "HMGET",
    "HSET",
    "HSETNX",
    "LINDEX",
    "LPOP",
    "LPUSH",
    "RPUSH",
    "ZCARD",
    "ZCOUNT",
    "ZRANGEBYLEX",
    "ZRANGEBYSCORE",
    "ZREM",
    "ZSCORE",
    "ZUNIONSTORE",
)


def check_access(runner: ScriptRunner, key: bytes, channel: str, *, parks: bool) -> None:
    """
    Check that the user has every right that a worker needs.

    Args:
        runner: Runs scripts on the server.
        key: A key that nothing else uses.
        channel: Of the notifications.
        parks: Whether tasks are parked.

    Raises:
        StoreAccessDenied: The user lacks rights. It names all commands that the user may not run, as far as the server
            can be asked for them at once.
        StoreUnavailable: The server did not answer in time.
    """
    commands = (*LEVEL_COMMANDS, *(PARKING_COMMANDS if parks else ()))
    denied = runner.run(level_script("denied"), [key], [channel, *commands])
    if denied:
        names = ", ".join(name.decode() for name in denied)
        raise StoreAccessDenied("Redis", f"the throttle needs the commands, and the channel {channel}", names)
    if parks:
        with runner.subscribe(channel) as subscription:
            subscription.get(0.1)  # the reply to SUBSCRIBE, which says whether it is denied
