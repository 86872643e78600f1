"""Options about patching sessions."""

from __future__ import annotations

import argparse

from pahq_server.cli import values


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-sessions",
        type=values.count,
        default=16,
        metavar="N",
        help="patching sessions at once (default: 16)",
    )
    parser.add_argument(
        "--max-user-sessions",
        type=values.count,
        default=8,
        metavar="N",
        help="of them, of one user (default: 8)",
    )
    parser.add_argument(
        "--session-timeout",
        type=values.rate,
        default=600.0,
        metavar="S",
        help="close a patching session after so many seconds without a call (default: 600)",
    )
