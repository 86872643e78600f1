"""Options about the address."""

from __future__ import annotations

import argparse
import ipaddress

from pahq_server.cli import values


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        type=values.address,
        default="127.0.0.1:7300",
        metavar="HOST:PORT",
        help="default: %(default)s",
    )
    parser.add_argument("--reflection", action="store_true", help="offer gRPC server reflection")
    parser.add_argument(
        "--max-connections",
        type=values.count,
        metavar="N",
        help="connections at once (default: as many as the process may open files, less 256 for other files)",
    )
    parser.add_argument(
        "--idle-timeout",
        type=values.rate,
        default=300.0,
        metavar="S",
        help="close connections without a call after so many seconds; clients connect again by themselves "
        "(default: %(default)g)",
    )
    parser.add_argument("--parent-watch", action="store_true", help="stop when standard input ends")


def is_loopback(listen: str) -> bool:
    """Whether only this machine can reach the address."""
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
