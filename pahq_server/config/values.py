"""Types of options: their values and units, and the functions that read them from text.

Every reader raises ValueError with a full explanation of what is wrong with the text.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pahq_server.config.options import Reader

# A unit is required: whoever writes "4" certainly does not mean bytes.
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?)b?|b)", re.ASCII | re.IGNORECASE)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_MINUTE_DAYS = 1 / 1440
# Ray's words for a cluster that is to be started on this machine, and for the one that runs on it already.
RAY_LOCAL, RAY_AUTO = RAY_WORDS = ("local", "auto")


def read_model(text: str) -> tuple[str, str]:
    """Reads the name and the source of a model from ``NAME=PATH_OR_HUB_ID``; the name may be left out."""
    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name, text
    if not name or not source or "/" in name or not name.isprintable() or "\0" in source:
        raise ValueError(f"{text!r} is not NAME=PATH_OR_HUB_ID")
    return name, source


def read_size(text: str) -> int:
    """Reads bytes from a size such as 2GiB, 1500MB or 1000000B."""
    found = _SIZE.fullmatch(text.strip())
    if found:
        number, prefix, binary = found.groups(default="")
        exponent = "kmgt".index(prefix.lower()) + 1 if prefix else 0
        size = float(number) * (1024 if binary else 1000) ** exponent
        if 1 <= size < 1 << 63:
            return int(size)
    if _NUMBER.fullmatch(text.strip()) and float(text) > 0:
        number = text.strip()
        raise ValueError(f"{text!r} has no unit: write {number}GiB or {number}MiB, or {number}B for bytes")
    raise ValueError(f"{text!r} is no size such as 2GiB, 1500MB or 1000000B (bytes)")


def read_directory(text: str) -> Path:
    """Reads the path of a directory that need not exist yet.

    An empty path is refused: it would mean whichever directory the command happens to run in.
    """
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a directory")
    return Path(text)


def read_count(text: str) -> int:
    """Reads an integer from 1 to 2**31 - 1."""
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31:
        return int(text)
    raise ValueError(f"must be an integer ≥ 1, got {text!r}")


def read_positive(text: str) -> float:
    """Reads a finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 0 < number < float("inf"):
        return number
    raise ValueError(f"must be a number > 0, got {text!r}")


def read_share(text: str) -> float:
    """Reads a number above 0 and at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if 0 < number <= 1:
        return number
    raise ValueError(f"must be a number > 0 and at most 1, got {text!r}")


def read_ray_address(text: str) -> str:
    """Reads where a Ray cluster is: a word of `RAY_WORDS`, or ``HOST:PORT`` of its head.

    After ``ray://`` the port is that for machines that are no hosts of the cluster.
    """
    if text in RAY_WORDS or _is_address(text.removeprefix("ray://")):
        return text
    hint = f"; did you mean {text}:6379?" if _is_address(f"{text}:6379") else ""
    raise ValueError(
        f"{text!r} is not HOST:PORT of a Ray cluster's head, such as head:6379, or ray://head:10001 from a "
        f"machine that is none of its hosts, or {' or '.join(RAY_WORDS)}{hint}"
    )


def read_lifetime(text: str) -> float:
    """Reads days, from a minute to a hundred years."""
    try:
        days = float(text)
    except ValueError:
        days = 0.0
    if _MINUTE_DAYS <= days <= 36_500:
        return days
    raise ValueError(f"must be a number of days from a minute (0.0007) to 36500, got {text!r}")


def read_user_weight(text: str) -> tuple[str, float]:
    """Reads a user and a weight from ``USER=WEIGHT``, such as ``ada=2``."""
    user, _, weight = text.rpartition("=")
    if user:
        return user, read_positive(weight)
    raise ValueError(f"{text!r} is not USER=WEIGHT")


def read_address(text: str) -> str:
    """Reads ``HOST:PORT``; an IPv6 host stands in brackets."""
    if _is_address(text):
        return text
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://|/$", "", text.strip())
    host, _, port = bare.rpartition(":")
    # What is often written instead: a port alone, an IPv6 address without brackets, a host alone.
    guesses = (bare, f"127.0.0.1:{bare.removeprefix(':')}", f"[{host}]:{port}", f"{bare}:7300")
    meant = next(filter(_is_address, guesses), None) if bare else None
    hint = f"; did you mean {meant}?" if meant else ""
    raise ValueError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7300{hint}")


def _is_address(text: str) -> bool:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%A-Za-z0-9]+)\]|[A-Za-z0-9._-]+):(\d{1,5})", text, re.ASCII)
    return match is not None and int(match[2]) < 1 << 16 and (match[1] is None or ":" in match[1])


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``HOST:PORT``."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Address = Annotated[str, Reader(read_address, "HOST:PORT")]
Count = Annotated[int, Reader(read_count, "N")]
Days = Annotated[float, Reader(read_positive, "DAYS")]
Directory = Annotated[Path, Reader(read_directory, "DIR")]
File = Annotated[Path, Reader(Path, "FILE")]
Lifetime = Annotated[float, Reader(read_lifetime, "N")]  # in days
ModelSource = Annotated[tuple[str, str], Reader(read_model, "NAME=PATH_OR_HUB_ID")]
Name = Annotated[str, Reader(str, "NAME")]
PemFile = Annotated[Path, Reader(Path, "PEM")]
Rate = Annotated[float, Reader(read_positive, "RATE")]  # per second
RayAddress = Annotated[str, Reader(read_ray_address, "HOST:PORT")]
Seconds = Annotated[float, Reader(read_positive, "S")]
Share = Annotated[float, Reader(read_share, "X")]
Size = Annotated[int, Reader(read_size, "SIZE")]  # in bytes
UserWeight = Annotated[tuple[str, float], Reader(read_user_weight, "USER=WEIGHT")]
