"""Options about how users share the machine."""

from __future__ import annotations

import argparse

from pahq_server.cli import values


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--slots",
        type=values.count,
        default=4,
        metavar="N",
        help="discoveries of all users together that have tensors in memory at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--user-weight",
        type=values.user_weight,
        action="append",
        default=[],
        metavar="USER=WEIGHT",
        help="share of the machine's time that a user gets beside others, who have 1; may be repeated",
    )
