"""Values of options, read from text. Each function raises ArgumentTypeError."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?))?b?", re.ASCII | re.IGNORECASE)


def model(text: str) -> tuple[str, str]:
    """Name and source of a model."""
    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name, text
    if not name or not source or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH_OR_HUB_ID")
    return name, source


def size(text: str) -> int:
    """Bytes of a size such as 2GiB, 1500MB or 1000000."""
    found = _SIZE.fullmatch(text.strip())
    if found:
        number, prefix, binary = found.groups(default="")
        exponent = "kmgt".index(prefix.lower()) + 1 if prefix else 0
        size = int(float(number) * (1024 if binary else 1000) ** exponent)
        if size > 0:
            return size
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2GiB, 1500MB or 1000000 (bytes)")


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
    host, _, port = text.rpartition(":")
    closed = host.startswith("[") == host.endswith("]") and (":" in host) == host.startswith("[")
    if host and closed and port.isascii() and port.isdigit() and int(port) < 1 << 16:
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
