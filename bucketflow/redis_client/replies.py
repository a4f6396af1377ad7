"""Meaning of a server's error replies for the call that they answer, and for the connection that they came over."""

from __future__ import annotations

import re
from typing import Any

from redis.exceptions import (
    AskError,
    BusyLoadingError,
    MasterDownError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

__all__ = ["NO_STRUCT", "is_not_master", "is_unexecuted", "reason_of", "spoils_connection"]

#: Why a script fails on a server that is no Redis, and what to test with.
NO_STRUCT = (
    "the Lua of fakeredis has no struct library. "
    "In tests use bucketflow.testing.MemoryRedis, or bucketflow_celery.testing.MemoryStore for a throttle"
)

#: Errors that only a script is answered with, by a server that may be asked again over the same connection.
_EXPECTED = (NoScriptError, OutOfMemoryError, AskError)
#: What a server says that is not, or not yet, the master. Not every version of redis-py has a class for each code, and
#: before 7.0 Redis wraps the error of a script's command into one of its own.
_NOT_MASTER = re.compile(r"(?:^|-)(?:READONLY|MASTERDOWN|LOADING) ")

#: A client of redis-py as a sentinel, in front of the error that it replied with.
_SENTINEL = re.compile(r"<redis\.[\w.]*Redis\(.*?\)>\)>\)> - ", re.DOTALL)
#: The arguments of an unknown command.
_ARGUMENTS = re.compile(r",? with args beginning with:.*", re.DOTALL)


def reason_of(error: Exception) -> str:
    """
    Return what *error* says.

    redis-py's error for a master that no sentinel names holds the representation of a client for each of them, which in
    some versions shows every setting of its connections, secrets included. An unknown command is repeated with its
    arguments, which of AUTH are a password.
    """
    return _ARGUMENTS.sub("", _SENTINEL.sub("", str(error))) or type(error).__name__


def is_not_master(reply: Any) -> bool:  # noqa: ANN401 - of any type
    """
    Return whether *reply* says that the server cannot write now, because it is a replica or still loads its data.

    After a failover behind a fixed address a connection still leads to the old master: only a new one leads to the new
    one. The server has executed nothing: our scripts write nothing before their first write is accepted.
    """
    if isinstance(reply, (ReadOnlyError, MasterDownError, BusyLoadingError)):
        return True
    return isinstance(reply, ResponseError) and _NOT_MASTER.search(str(reply)) is not None


def is_unexecuted(reply: Any) -> bool:  # noqa: ANN401 - of any type
    """Return whether *reply* proves that the server has executed nothing, so that the call may be repeated."""
    return isinstance(reply, NoScriptError) or is_not_master(reply)


def spoils_connection(reply: Any) -> bool:  # noqa: ANN401 - of any type
    """
    Return whether the connection that *reply* came over must be closed.

    The server may not be the master any more. And an unexpected error may be the reply to something else, such as an
    interrupted handshake: then the reply to the call is still to come, and would answer the next one.
    """
    return isinstance(reply, ResponseError) and not isinstance(reply, _EXPECTED)
