"""Options about the address, and who may reach it."""

from __future__ import annotations

import argparse
import ipaddress


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen", default="127.0.0.1:7300", metavar="HOST:PORT", help="default: %(default)s"
    )
    parser.add_argument("--insecure", action="store_true", help="allow an address that is not loopback")
    parser.add_argument("--reflection", action="store_true", help="offer gRPC server reflection")
    parser.add_argument("--parent-watch", action="store_true", help="stop when standard input ends")


def refusal(options: argparse.Namespace) -> str | None:
    """Why the server must not listen so; None if it may."""
    if options.insecure or _is_loopback(options.listen):
        return None
    return (
        f"{options.listen} is open to the network: calls are neither encrypted nor "
        "authenticated. Listen on 127.0.0.1, or pass --insecure if the network is trusted."
    )


def _is_loopback(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
