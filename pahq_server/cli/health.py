"""``pahq-server health``: asks a running server whether it takes calls."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pahq_server.cli.output import FAILED, OK, complain
from pahq_server.config.options import option
from pahq_server.config.values import Address, File, Name, Seconds
from pahq_server.core.errors import ServerError

if TYPE_CHECKING:
    from pahq_server.api.health import ProbeTls


# gRPC takes a timeout that is far longer than this for one that has passed.
MAX_TIMEOUT_S = 86_400.0


@dataclass(frozen=True)
class HealthOptions:
    """Which server to ask, and how."""

    address: Address = option("127.0.0.1:7300", "of the server")
    timeout: Seconds = option(3.0, "seconds to wait (default: %(default)s)")
    tls_ca: File | None = option(None, "certificates to trust; makes the connection encrypted")
    tls_cert: File | None = option(None, "certificate to show to the server")
    tls_key: File | None = option(None, "its key")
    tls_name: Name | None = option(None, "that the server's certificate bears (default: HOST)")
    resumed: bool = option(
        False,
        "ask whether it has taken up all jobs that an earlier process left: it takes calls before that",
    )
    alive: bool = option(
        False, "ask only whether it answers calls, also while no worker is there to compute what they ask for"
    )


def run(options: HealthOptions) -> int:
    """Prints the server's answer; returns the exit code, `FAILED` if it does not take calls."""
    if (options.tls_cert is None) != (options.tls_key is None):
        return complain("--tls-cert and --tls-key go together")
    if options.tls_ca is None and (options.tls_cert or options.tls_name):
        return complain("--tls-cert, --tls-key and --tls-name need --tls-ca")
    if options.alive and options.resumed:
        return complain("--alive and --resumed are two questions: ask one at a time")
    # Why a connection fails is in the answer; gRPC's core need not write it to stderr as well.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from pahq_server.api import health
    except ModuleNotFoundError as error:  # only the client is installed
        return complain(f"{error.name} is not installed: pip install '.[server]' in a checkout of PAHQ")
    try:
        service = health.ALIVE if options.alive else health.RESUMED if options.resumed else ""
        healthy, answer = health.probe(
            options.address, _tls(options), min(options.timeout, MAX_TIMEOUT_S), service
        )
    except ServerError as error:
        return complain(str(error))
    print(answer)
    return OK if healthy else FAILED


def _tls(options: HealthOptions) -> ProbeTls | None:
    from pahq_server.api.health import ProbeTls

    if options.tls_ca is None:
        return None
    return ProbeTls(options.tls_ca, options.tls_cert, options.tls_key, options.tls_name)
