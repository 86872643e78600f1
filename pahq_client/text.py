"""Strings of others (servers, files, arguments) that are safe to print."""

from __future__ import annotations

# Longer texts of others are cut off: an error message is no place for a megabyte.
_LONGEST = 4000


def printable(text: str) -> str:
    """The text, with whatever a terminal or an editor might obey written as an escape, such as ``\\x1b``.

    That is every character that Unicode counts as not printable: control characters, marks that turn the
    direction of writing, invisible ones, lone surrogates. Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in text)


def one_line(text: str) -> str:
    """As `printable`, on one line of a limited length."""
    # Cut before anything else is done, so that a text of megabytes costs nothing.
    line = printable(" ".join(text[: 2 * _LONGEST].split()))
    return line if len(line) <= _LONGEST and len(text) <= 2 * _LONGEST else f"{line[:_LONGEST]} …"


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
