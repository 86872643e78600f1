"""Options about how rows are computed."""

from __future__ import annotations

import argparse

from pahq_server.cli import values


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=values.count, metavar="N", help="threads for tensor arithmetic")
    parser.add_argument(
        "--executor",
        default="sparse",
        choices=("sparse", "literal"),
        help="how hypotheses are computed; literal is slow and for comparison (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=values.count,
        default=32,
        metavar="N",
        help="evaluations that a search asks for at once; never changes a result (default: %(default)s)",
    )
