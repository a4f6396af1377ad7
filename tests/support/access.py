"""Users of Redis with some rights only, and the lists of rights in the documentation."""

from __future__ import annotations

import re
from contextlib import contextmanager
from pathlib import Path

from processes import HOST

__all__ = ["commands_in", "documented", "limited_user"]

DOCS = Path(__file__).parents[2] / "docs"
PASSWORD = "secret"


def documented(page, start, end):
    """Return the commands that *page* of the documentation names between two texts."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(start)[2].partition(end)[0]
    assert text, f"{page} has no text between {start!r} and {end!r}"
    return set(re.findall(r"`([A-Z]+(?: [A-Z]+)?)`", text))


def commands_in(script):
    """Return the commands that the Lua file *script* calls."""
    source = re.sub(r"--.*", "", script.read_text(encoding="utf-8"))
    called = re.findall(r"\bp?call\(([^,)]*)", source)
    return {name for call in called for name in re.findall(r"'([A-Z]+)'", call)}


@contextmanager
def limited_user(server, commands, *patterns):
    """Yield the URL of *server*, without a database, for a user with *commands* on the keys and channels *patterns*."""
    rights = [f"+{name.lower().replace(' ', '|')}" for name in commands]
    with server.client() as admin:
        user = ("resetkeys", "resetchannels", *patterns, "-@all", *rights)
        admin.execute_command("ACL", "SETUSER", "limited", "on", f">{PASSWORD}", *user)
        try:
            yield f"redis://limited:{PASSWORD}@{HOST}:{server.port}"
        finally:
            admin.execute_command("ACL", "DELUSER", "limited")
