"""Encoding of commands and of numbers for the Redis protocol."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["exact", "pack", "pack_words"]


def exact(number: float) -> str:
    """Return *number* for ARGV: Lua reads back the same bits."""
    return repr(float(number))


def pack(command: Sequence[str | bytes | int], more: int = 0) -> bytes:
    """
    Return *command* in the form of the Redis protocol: an array of strings, each with its length.

    Args:
        command: Its words.
        more: How many will follow: see :func:`pack_words`.
    """
    return b"*%d\r\n%b" % (len(command) + more, pack_words(command))


def pack_words(words: Sequence[str | bytes | int]) -> bytes:
    """Return *words* as they stand in a command."""
    parts = []
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)
