"""Where servers are: HOST:PORT, or a Unix socket."""

from __future__ import annotations

import ipaddress
import re

from pahq_client import checks
from pahq_client.errors import InvalidRequest

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})", re.ASCII)


def check_address(address: object) -> str:
    """Returns the address if it has the form of one. Raises InvalidRequest otherwise."""
    text = checks.text("server", address)
    if text.startswith("unix:"):
        return text
    if not _is_address(text):
        meant = _meant(text)
        hint = f"; did you mean {meant}?" if meant else ""
        raise InvalidRequest("server", f"must be HOST:PORT, for example gpu-box:7300, got {text!r}{hint}")
    return text


def _meant(text: str) -> str | None:
    """The address that was probably meant: without a scheme, with a host, or with the usual port."""
    bare = re.sub(r"^[A-Za-z][A-Za-z0-9+.-]*://|/$", "", text.strip())
    host, _, port = bare.rpartition(":")
    guesses = (bare, f"127.0.0.1:{bare.removeprefix(':')}", f"[{host}]:{port}", f"{bare}:7300")
    return next((guess for guess in guesses if bare and _is_address(guess)), None)


def _is_address(text: str) -> bool:
    match = _ADDRESS.fullmatch(text)
    return match is not None and 0 < int(match[2]) < 65536


def is_loopback(address: str) -> bool:
    """Whether what is sent to the (valid) address stays on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
