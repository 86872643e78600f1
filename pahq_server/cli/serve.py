"""``pahq-server serve``: serve models over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pahq_server.cli.options import (
    access,
    computing,
    listening,
    models,
    quotas,
    sessions,
    sharing,
    storage,
    telemetry,
)
from pahq_server.cli.output import FAILED, OK, announce, complain, table
from pahq_server.core.errors import ServerError, StorageError, WorkerFailedError

if TYPE_CHECKING:
    from pahq_server.app import ServerConfig
    from pahq_server.core.engine import ModelInfo

logger = logging.getLogger(__name__)

# Longest time that a thread keeps others from running Python code.
SWITCH_S = 0.001
# Measured on two cores: small models take 1.1 to 1.3 times as long as with the default; where other processes
# want both cores 1.2 times as long as if threads slept at once, and with the default 1.5 times.
SPIN_COUNT = "4000"
# Kernels that torch's oneDNN layer keeps, one per shape of a matrix product and some 400 KB each; by default
# 1024. Jobs of ever other shapes fill whatever there is, and that memory is in no plan. Measured on 24 varied
# jobs of the demo model: a quarter of the default costs no more than 2 % of the CPU time.
KEPT_KERNELS = "256"
STOPPING = (signal.SIGTERM, signal.SIGINT)
TOPICS = (models, listening, access, computing, sessions, sharing, quotas, storage, telemetry)


def add(parser: argparse.ArgumentParser) -> None:
    for topic in TOPICS:
        topic.add(parser)
    parser.add_argument(
        "--no-self-test",
        action="store_true",
        help="do not compare models with transformers' own reading of them when they are loaded",
    )


def run(options: argparse.Namespace) -> int:
    if why := access.refusal(options):
        return complain(why)
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait for the next operation spin, by default for long, on cores that the event loop and
        # other processes need. If they slept at once, small models would take nearly twice as long.
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    os.environ.setdefault("LRU_CACHE_CAPACITY", KEPT_KERNELS)
    # gRPC's core would write a line of its own kind about every handshake that fails, past the log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # A call is answered in many turns between those of the worker, and by default waits 5 ms for each.
    sys.setswitchinterval(SWITCH_S)
    # Until the event loop takes the signals over. Nothing has to be kept yet, and the first process of a
    # container, which has no default for SIGTERM, would go on.
    before = {number: signal.signal(number, _stop_at_once) for number in STOPPING}
    try:
        return _serve(options)
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        # The machine lacks something, mostly memory, which torch and threads tell by a plain RuntimeError and
        # libraries that are loaded by ImportError.
        logger.debug("the server ends", exc_info=error)
        reason = "there is not enough memory" if isinstance(error, MemoryError) else f"cannot go on: {error}"
        return complain(reason, FAILED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_at_once(*_: object) -> None:
    """Ends the process while models are loaded: a handler of signals.

    An exception would not do: Python drops those that are raised in callbacks and while objects are deleted,
    and libraries may leave half of what they make behind.
    """
    os._exit(OK)


def _serve(options: argparse.Namespace) -> int:
    """Serves until the end; returns the exit code. Raises what tells that the machine lacks something."""
    try:
        from pahq_server.app import serve  # imports torch, which takes seconds
    except ModuleNotFoundError as error:  # the client alone is installed
        return complain(f"{error.name} is not installed: pip install 'pahq[server]'")
    from pahq_server.api.server import ListenError
    from pahq_server.plan.planning import DoesNotFitError

    told, stopped = Announcement(options), False

    async def until_stopped() -> None:
        nonlocal stopped
        await serve(_config(options), told.ready, told.loaded)
        stopped = True

    try:
        asyncio.run(until_stopped())
    except (
        DoesNotFitError,
        StorageError,
        WorkerFailedError,
    ) as error:  # what was asked for is right, but not here and now
        return complain(str(error), FAILED)
    except ServerError as error:
        return complain(str(error))
    except ListenError as error:
        logger.debug("cannot serve", exc_info=error)
        # gRPC knows no more than that, and tells how to have it write a log.
        taken = "the address is in use, or is not one of this machine"
        return complain(
            f"cannot serve on {options.listen}: {taken if 'Failed to bind' in str(error) else error}"
        )
    except (MemoryError, RuntimeError) as error:
        if not stopped:
            raise
        # All that matters is done; asyncio could not start a thread to put its own things away.
        logger.debug("the event loop did not end in good order", exc_info=error)
    return OK


class Announcement:
    """Tells what is served, where, and how to try it.

    The address alone goes to stdout, for programs; the rest to stderr, or to the log where that is JSON, so
    that every line of it stays an object.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options

    def loaded(self, models: Sequence[ModelInfo]) -> None:
        """What is served, as a table."""
        columns = ("model", "format", "parameters", "context", "edges", "prompts", "revision")
        rows = [
            (
                model.name,
                model.architecture,
                f"{model.parameters:,}",
                f"{model.context:,}",
                f"{model.edges_group:,}",
                "text or token ids" if model.tokenizer else "token ids",
                model.revision[:12],
            )
            for model in models
        ]
        self._tell(table(columns, rows, right=("parameters", "context", "edges")))

    def ready(self, address: str) -> None:
        """Where it is served, and a command for a first discovery."""
        announce(address)
        self._tell([f"try it: {client_line(address, self._options)}"])

    def _tell(self, lines: Sequence[str]) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        for line in lines:
            if self._options.log_format == "json":
                logger.info("%s", line)
            else:
                print(line, file=sys.stderr, flush=True)


def client_line(address: str, options: argparse.Namespace) -> str:
    """A client's command that this server answers; capitals stand for what only the user knows."""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # everywhere: by the name that others may know
        host = socket.gethostname()
    words = ["pahq", "discover", "--server", f"{host}:{port}"]
    words += ["--model", models.DEMO, "--task", "ioi", "--threshold", "0.05"]
    if options.tls_cert is not None:
        words += ["--tls-ca", "CA.crt"]
    if options.tls_client_ca is not None:
        words += ["--tls-cert", "YOURS.crt", "--tls-key", "YOURS.key"]
    if access.config(options).auth == "tokens":
        words.insert(0, "PAHQ_TOKEN=TOKEN")
    return " ".join(words)


def _config(options: argparse.Namespace) -> ServerConfig:
    from pahq_server.api.connections import ConnectionLimits
    from pahq_server.app import ServerConfig
    from pahq_server.jobs.calls import SessionLimits

    return ServerConfig(
        models=models.sources(options),
        listen=options.listen,
        threads=options.threads,
        reflect=options.reflection,
        parent_watch=options.parent_watch,
        executor=options.executor,
        window=options.window,
        session_limits=SessionLimits(
            sessions=options.max_sessions,
            idle_s=options.session_timeout,
            user_sessions=options.max_user_sessions,
        ),
        memory_bytes=options.memory,
        weights=models.WEIGHTS[options.weights],
        device=options.device,
        storage=storage.config(options),
        quotas=quotas.config(options),
        slots=options.slots,
        user_weights=dict(options.user_weight),
        access=access.config(options),
        connections=ConnectionLimits(options.max_connections, options.idle_timeout),
        telemetry=telemetry.config(options, os.environ),
        self_test=not options.no_self_test,
    )
