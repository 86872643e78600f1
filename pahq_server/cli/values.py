"""Values of options, read from text. Each function raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

# A unit is needed: whoever writes 4 means anything but bytes.
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?)b?|b)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def model(text: str) -> tuple[str, str]:
    """Name and source of a model."""
    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name, text
    if not name or not source or "/" in name or not name.isprintable() or "\0" in source:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH_OR_HUB_ID")
    return name, source


def size(text: str) -> int:
    """Bytes of a size such as 2GiB, 1500MB or 1000000B."""
    found = _SIZE.fullmatch(text.strip())
    if found:
        number, prefix, binary = found.groups(default="")
        exponent = "kmgt".index(prefix.lower()) + 1 if prefix else 0
        size = float(number) * (1024 if binary else 1000) ** exponent
        if 1 <= size < 1 << 63:
            return int(size)
    if _NUMBER.fullmatch(text.strip()) and float(text) > 0:
        number = text.strip()
        raise argparse.ArgumentTypeError(
            f"{text!r} has no unit: write {number}GiB or {number}MiB, or {number}B for bytes"
        )
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2GiB, 1500MB or 1000000B (bytes)")


def directory(text: str) -> Path:
    """A directory that may not be there yet. An empty one would be whichever the command is run in."""
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is not the path of a directory")
    return Path(text)


def count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")


def rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if 0 < rate < float("inf"):
        return rate
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number")


def user_weight(text: str) -> tuple[str, float]:
    """A user and a weight, such as ``ada=2``."""
    user, _, weight = text.rpartition("=")
    if user:
        return user, rate(weight)
    raise argparse.ArgumentTypeError(f"{text!r} is not USER=WEIGHT")


def address(text: str) -> str:
    """``HOST:PORT``; an IPv6 host in brackets."""
    if _is_address(text):
        return text
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://|/$", "", text.strip())
    host, _, port = bare.rpartition(":")
    # A port alone, a host alone, an IPv6 address without brackets: with what is missing.
    guesses = (bare, f"127.0.0.1:{bare.removeprefix(':')}", f"[{host}]:{port}", f"{bare}:7300")
    meant = next(filter(_is_address, guesses), None) if bare else None
    hint = f"; did you mean {meant}?" if meant else ""
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7300{hint}")


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%A-Za-z0-9]+)\]|[A-Za-z0-9._-]+):(\d{1,5})", text, re.ASCII)
    return match is not None and int(match[2]) < 1 << 16 and (match[1] is None or ":" in match[1])
