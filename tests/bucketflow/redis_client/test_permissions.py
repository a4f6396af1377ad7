"""What a server's refusal by access control says: in each server's words, the command that the user may not run."""

from __future__ import annotations

import pytest
from redis.exceptions import NoPermissionError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from bucketflow.redis_client.permissions import denied_command, is_denied
from bucketflow.redis_client.scripts import Script

SCRIPT = Script.of(
    "two",
    "local one = redis.call('GET', KEYS[1])\n"
    "call('PSETEX', KEYS[1], 'PX')\n"
    "redis.call(front and 'LPUSH' or 'RPUSH', key, 'EX')\n"
    "return {redis.call('TIME'), redis.call('MGET', KEYS[1])}",
)
IN_SCRIPT = "The user executing the script can't run this command or subcommand script: 5a52, on @user_script:{}."

REPLIES = [
    # reply, denied, command
    (NoPermissionError("this user has no permissions to run the 'select' command"), True, "SELECT"),
    (NoPermissionError("this user has no permissions to run the 'evalsha' command or its subcommand"), True, "EVALSHA"),
    (NoPermissionError("User bf has no permissions to run the 'cluster|slots' command"), True, "CLUSTER SLOTS"),
    (NoPermissionError("this user has no permissions to access one of the keys used as arguments"), True, None),
    (NoPermissionError("No permissions to access a channel"), True, None),
    (NoPermissionError("anything"), True, None),
    (
        ResponseError("ACL failure in script: User bf has no permissions to run the 'psetex' command script: on "
                      "@user_script:1."), True, "PSETEX",
    ),
    (ResponseError("ACL failure in script: No permissions to access a key script: on @user_script:1."), True, None),
    (ResponseError(IN_SCRIPT.format(1)), True, "GET"),
    (ResponseError(IN_SCRIPT.format(2)), True, "PSETEX"),
    (ResponseError(IN_SCRIPT.format(3)), True, "LPUSH or RPUSH"),
    (ResponseError(IN_SCRIPT.format(4)), True, "TIME or MGET"),
    (ResponseError("The user executing the script can't run this command or subcommand"), True, None),
    (
        ResponseError("The user executing the script can't access at least one of the keys mentioned in the command "
                      "arguments script: 3b0b, on @user_script:1."), True, None,
    ),
    (
        ResponseError("The user executing the script can't publish to the channel mentioned in the command script: "
                      "3b0b, on @user_script:1."), True, None,
    ),
    (ResponseError("user_script:1: attempt to index a nil value script: 3b0b, on @user_script:1."), False, None),
    (OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), False, None),
    (ReadOnlyError("You can't write against a read only replica."), False, None),
    (RedisTimeoutError("no answer within 1 s"), False, None),
    (ConnectionResetError("reset"), False, None),
]  # fmt: skip


@pytest.mark.parametrize(("reply", "denied", "command"), REPLIES)
def test_a_refusal_by_access_control_names_the_command(reply, denied, command):
    assert is_denied(reply) is denied
    assert denied_command(reply, SCRIPT) == command


def test_no_line_is_looked_up_for_what_is_no_script():
    assert denied_command(ResponseError(IN_SCRIPT.format(1))) is None
