"""The command ``pahq-server``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pahq import __version__

from pahq_server.core.errors import ServerError
from pahq_server.demo import model_path

OK, FAILED, USAGE = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    models = {"demo": str(model_path())} | dict(options.model)
    return _serve(options, models)


def _serve(options: argparse.Namespace, models: dict[str, str]) -> int:
    if not (options.insecure or _is_loopback(options.listen)):
        return _complain(
            f"{options.listen} is open to the network: calls are neither encrypted nor "
            "authenticated. Listen on 127.0.0.1, or pass --insecure if the network is trusted."
        )
    # Idle OpenMP threads would spin on cores that the event loop and other processes need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from pahq_server.app import ServerConfig, serve  # imports torch, which takes seconds
    except ModuleNotFoundError as error:  # the client alone is installed
        return _complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    from pahq_server.jobs.calls import SessionLimits

    config = ServerConfig(
        models=models,
        listen=options.listen,
        threads=options.threads,
        reflect=options.reflection,
        parent_watch=options.parent_watch,
        executor=options.executor,
        window=options.window,
        session_limits=SessionLimits(sessions=options.max_sessions, idle_s=options.session_timeout),
    )
    try:
        asyncio.run(serve(config, _announce))
    except ServerError as error:
        return _complain(str(error))
    except RuntimeError as error:
        logging.getLogger(__name__).debug("cannot serve", exc_info=error)
        return _complain(f"cannot serve on {options.listen}: {error}")
    return OK


def _announce(address: str) -> None:
    print(f"pahq-server listening on {address}", flush=True)


def _complain(message: str) -> int:
    print(f"pahq-server: {message}", file=sys.stderr)
    return USAGE


def _is_loopback(listen: str) -> bool:
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _model(text: str) -> tuple[str, str]:
    name, equals, source = text.partition("=")
    if not equals:
        name, source = Path(text).name, text
    if not name or not source or "/" in name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH_OR_HUB_ID")
    return name, source


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pahq-server", description="Keeps language models resident and discovers circuits in them."
    )
    parser.add_argument("--version", action="version", version=f"pahq-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve models over gRPC")
    serve.add_argument(
        "--model",
        type=_model,
        action="append",
        default=[],
        metavar="NAME=PATH_OR_HUB_ID",
        help="a model to serve, besides the built-in 'demo'; may be repeated",
    )
    serve.add_argument("--listen", default="127.0.0.1:7300", metavar="HOST:PORT", help="default: %(default)s")
    serve.add_argument("--threads", type=int, metavar="N", help="threads for tensor arithmetic")
    serve.add_argument(
        "--executor",
        default="sparse",
        choices=("sparse", "literal"),
        help="how hypotheses are computed; literal is slow and for comparison (default: %(default)s)",
    )
    serve.add_argument(
        "--window",
        type=int,
        default=32,
        metavar="N",
        help="evaluations that a search asks for at once; never changes a result (default: %(default)s)",
    )
    serve.add_argument(
        "--max-sessions", type=int, default=16, metavar="N", help="patching sessions at once (default: 16)"
    )
    serve.add_argument(
        "--session-timeout",
        type=float,
        default=600.0,
        metavar="S",
        help="close a patching session after so many seconds without a call (default: 600)",
    )
    serve.add_argument("--insecure", action="store_true", help="allow an address that is not loopback")
    serve.add_argument("--reflection", action="store_true", help="offer gRPC server reflection")
    serve.add_argument("--parent-watch", action="store_true", help="stop when standard input ends")
    serve.add_argument(
        "--log-level",
        default="info",
        choices=("debug", "info", "warning", "error"),
        help="default: %(default)s",
    )
    return parser
