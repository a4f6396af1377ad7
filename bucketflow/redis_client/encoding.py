"""Encoding of commands and numbers for the Redis protocol (RESP)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["exact", "pack", "pack_words", "text_of"]


def exact(number: float) -> str:
    """Return *number* as decimal text from which Lua reads back the same bits."""
    return repr(float(number))


def pack(command: Sequence[str | bytes | int], more: int = 0) -> bytes:
    """
    Encode *command* as a RESP array of bulk strings.

    Args:
        command: The words of the command.
        more: Number of words that the caller appends with :func:`pack_words`.
    """
    return b"*%d\r\n%b" % (len(command) + more, pack_words(command))


def pack_words(words: Sequence[str | bytes | int]) -> bytes:
    """Encode *words* as RESP bulk strings, without the array header."""
    parts = []
    for word in words:
        raw = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(raw), raw))
    return b"".join(parts)


def text_of(raw: bytes) -> str:
    """Return the text that a reply has as *raw*; what is no UTF-8 is replaced."""
    return raw.decode(errors="replace")
