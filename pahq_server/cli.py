"""The command ``pahq-server``."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pahq import __version__

from pahq_server.core.errors import ServerError
from pahq_server.demo import model_path

OK, FAILED, USAGE = 0, 1, 2
# What weights can be kept in, with the policy that rounds them so; None for full precision.
WEIGHTS = {"fp32": None, "bf16": "bf16", "int8": "pahq-int8", "fp8": "pahq-fp8"}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kmgt])(i?))?b?", re.ASCII | re.IGNORECASE)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    models = {"demo": str(model_path())} | dict(options.model)
    return _plan(options, models) if options.command == "plan" else _serve(options, models)


def _plan(options: argparse.Namespace, models: dict[str, str]) -> int:
    try:
        from pahq_server.plan import planning, text, work  # imports torch, which takes seconds
    except ModuleNotFoundError as error:  # the client alone is installed
        return _complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    load = planning.Load(options.prompts, options.tokens)
    try:
        plan = planning.plan_models(models, options.memory, load=load, precision=WEIGHTS[options.weights])
    except ServerError as error:
        return _complain(str(error))
    plan = replace(plan, gflops=options.gflops or work.measured_gflops())
    print(json.dumps(text.as_json(plan), indent=2) if options.json else text.text(plan))
    return OK if plan.fits else FAILED


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
    from pahq_server.plan.planning import DoesNotFitError

    config = ServerConfig(
        models=models,
        listen=options.listen,
        threads=options.threads,
        reflect=options.reflection,
        parent_watch=options.parent_watch,
        executor=options.executor,
        window=options.window,
        session_limits=SessionLimits(sessions=options.max_sessions, idle_s=options.session_timeout),
        memory_bytes=options.memory,
        weights=WEIGHTS[options.weights],
    )
    try:
        asyncio.run(serve(config, _announce))
    except DoesNotFitError as error:
        return _complain(str(error), FAILED)
    except ServerError as error:
        return _complain(str(error))
    except RuntimeError as error:
        logging.getLogger(__name__).debug("cannot serve", exc_info=error)
        return _complain(f"cannot serve on {options.listen}: {error}")
    return OK


def _announce(address: str) -> None:
    print(f"pahq-server listening on {address}", flush=True)


def _complain(message: str, code: int = USAGE) -> int:
    print(f"pahq-server: {message}", file=sys.stderr)
    return code


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


def _size(text: str) -> int:
    """Bytes of a size such as 2GiB, 1500MB or 1000000."""
    found = _SIZE.fullmatch(text.strip())
    if found:
        number, prefix, binary = found.groups(default="")
        exponent = "kmgt".index(prefix.lower()) + 1 if prefix else 0
        size = int(float(number) * (1024 if binary else 1000) ** exponent)
        if size > 0:
            return size
    raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2GiB, 1500MB or 1000000 (bytes)")


def _count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) < 1 << 31:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if 0 < rate < float("inf"):
        return rate
    raise argparse.ArgumentTypeError(f"{text!r} is no positive number")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pahq-server", description="Keeps language models resident and discovers circuits in them."
    )
    parser.add_argument("--version", action="version", version=f"pahq-server {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    _add_serve(commands.add_parser("serve", help="serve models over gRPC"))
    _add_plan(commands.add_parser("plan", help="say what serving models would take, without loading them"))
    for command in commands.choices.values():
        command.add_argument(
            "--log-level",
            default="info",
            choices=("debug", "info", "warning", "error"),
            help="default: %(default)s",
        )
    return parser


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        type=_model,
        action="append",
        default=[],
        metavar="NAME=PATH_OR_HUB_ID",
        help="a model to serve, besides the built-in 'demo'; may be repeated",
    )
    parser.add_argument(
        "--memory",
        type=_size,
        metavar="SIZE",
        help="what jobs and sessions may take beside the models, such as 2GiB, 1500MB or plain bytes; never "
        "changes a result (default: half of what the models leave of the machine's memory)",
    )


def _add_plan(plan: argparse.ArgumentParser) -> None:
    _add_models(plan)
    plan.add_argument(
        "--prompts", type=_count, default=16, metavar="N", help="prompts of a job (default: %(default)s)"
    )
    plan.add_argument(
        "--tokens", type=_count, default=16, metavar="N", help="tokens of a prompt (default: %(default)s)"
    )
    plan.add_argument(
        "--gflops",
        type=_rate,
        metavar="RATE",
        help="billions of operations per second to reckon with (default: measured in a fraction of a second)",
    )
    _add_weights(plan)
    plan.add_argument("--json", action="store_true", help="print one JSON object")


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=tuple(WEIGHTS),
        default="fp32",
        help="what weights are kept in: %(choices)s (default: %(default)s); unless fp32, only rounded "
        "weights are in memory, and full precision is read from the checkpoint's files when it is used",
    )


def _add_serve(serve: argparse.ArgumentParser) -> None:
    _add_models(serve)
    _add_weights(serve)
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
