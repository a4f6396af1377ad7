"""Recognition of a reply that says what the server's access control (ACL) forbids to the user."""

from __future__ import annotations

import re

from redis.exceptions import NoPermissionError, ResponseError

from bucketflow.redis_client.scripts import Script

__all__ = ["denied_command", "is_denied"]

#: What the servers say, in a script without the prefix NOPERM.
_DENIED = re.compile(r"no permissions to |executing the script can't (?:run|access|publish)", re.IGNORECASE)
_COMMAND = re.compile(r"no permissions to run the '([^']+)' command", re.IGNORECASE)
_NAMELESS = "executing the script can't run this command"  # Redis before 7.2
_LINE = re.compile(r"@user_script: ?(\d+)")
_CALL = re.compile(r"call\(([^,)]*)")
_NAME = re.compile(r"'([A-Z]+)'")


def is_denied(error: Exception) -> bool:
    """Return whether *error* is a refusal by access control: of a command, of a key or of a channel."""
    if isinstance(error, NoPermissionError):
        return True
    return isinstance(error, ResponseError) and _DENIED.search(str(error)) is not None


def denied_command(error: Exception, script: Script | None = None) -> str | None:
    """
    Return the command that the user may not run, such as ``"PSETEX"`` or ``"CLUSTER SLOTS"``.

    Redis before 7.2 names no command if it was a script that ran it. It names the line of the script.

    Args:
        error: The reply.
        script: The script that was called; ``None`` if it was another command.

    Returns:
        Several commands, such as ``"LPUSH or RPUSH"``, if the line has several. ``None`` if it was not a command that
        the server has refused, but a key or a channel.
    """
    text = str(error)
    named = _COMMAND.search(text)
    if named is not None:
        return named[1].upper().replace("|", " ")
    line = _LINE.search(text)
    if script is None or line is None or _NAMELESS not in text:
        return None
    calls = _CALL.findall(script.text.splitlines()[int(line[1]) - 1])
    return " or ".join(dict.fromkeys(name for call in calls for name in _NAME.findall(call))) or None
