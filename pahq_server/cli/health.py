"""``pahq-server health``: ask a running server whether it takes calls."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pahq_server.cli import values
from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.core.errors import ServerError

if TYPE_CHECKING:
    from pahq_server.api.probe import ProbeTls


# gRPC takes what is far longer for a time that has passed.
DAY_S = 86_400.0


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        type=values.address,
        default="127.0.0.1:7300",
        metavar="HOST:PORT",
        help="of the server (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout", type=values.rate, default=3.0, metavar="S", help="seconds to wait (default: %(default)s)"
    )
    parser.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="certificates to trust; makes the connection encrypted"
    )
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate to show to the server")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    parser.add_argument(
        "--tls-name", metavar="NAME", help="that the server's certificate bears (default: HOST)"
    )
    parser.add_argument(
        "--resumed",
        action="store_true",
        help="ask whether it has taken up all jobs that an earlier process left: it takes calls before that",
    )


def run(options: argparse.Namespace) -> int:
    if (options.tls_cert is None) != (options.tls_key is None):
        return complain("--tls-cert and --tls-key go together")
    if options.tls_ca is None and (options.tls_cert or options.tls_name):
        return complain("--tls-cert, --tls-key and --tls-name need --tls-ca")
    # What gRPC's core writes about a connection that fails is in the answer, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from pahq_server.api import probe
    except ModuleNotFoundError as error:  # the client alone is installed
        return complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    try:
        service = probe.RESUMED if options.resumed else ""
        well, says = probe.serving(options.address, _tls(options), min(options.timeout, DAY_S), service)
    except ServerError as error:
        return complain(str(error))
    print(says)
    return OK if well else FAILED


def _tls(options: argparse.Namespace) -> ProbeTls | None:
    from pahq_server.api.probe import ProbeTls

    if options.tls_ca is None:
        return None
    return ProbeTls(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
