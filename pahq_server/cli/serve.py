"""``pahq-server serve``: serves models over gRPC until it is stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pahq_server.cli.output import FAILED, OK, complain, table
from pahq_server.config.server import DEMO, ServerConfig
from pahq_server.core.errors import ServerError, StorageError, WorkerFailedError
from pahq_server.process import prepare_process
from pahq_server.telemetry import logs

if TYPE_CHECKING:
    from pahq_server.core.engine import ModelInfo

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(config: ServerConfig) -> int:
    """Serves until it is stopped; returns the exit code.

    `USAGE` says that what was asked for cannot be, `FAILED` that the machine lacks something, so that
    starting again may help.
    """
    if why := config.refusal():
        return complain(why)
    prepare_process()
    # Handlers until the event loop takes over. Nothing has to be stored yet. Without them the first process
    # of a container would ignore SIGTERM.
    before = {number: signal.signal(number, _stop_at_once) for number in STOP_SIGNALS}
    try:
        return _serve(config)
    except (MemoryError, RuntimeError, OSError, ImportError) as error:
        # The machine lacks something, mostly memory. Torch and threads say so by a plain RuntimeError,
        # libraries that cannot be loaded by ImportError.
        logger.debug("the server ends", exc_info=error)
        reason = "there is not enough memory" if isinstance(error, MemoryError) else f"cannot go on: {error}"
        return complain(reason, FAILED)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop_at_once(*_: object) -> None:
    """Signal handler that ends the process while models are loaded.

    Raising an exception instead would not be safe: Python drops exceptions that are raised in callbacks and
    while objects are deleted, and libraries may leave behind half of what they make.
    """
    os._exit(OK)


def _serve(config: ServerConfig) -> int:
    """Serves until the end; returns the exit code. Raises whatever shows that the machine lacks something."""
    try:
        from pahq_server.app import serve  # imports torch, which takes seconds
    except ModuleNotFoundError as error:  # only the client is installed
        return complain(f"{error.name} is not installed: pip install '.[server]' in a checkout of PAHQ")
    from pahq_server.api.server import ListenError
    from pahq_server.plan.planning import DoesNotFitError

    announcement, stopped = Announcement(config), False

    async def until_stopped() -> None:
        nonlocal stopped
        await serve(config, announcement.ready, announcement.loaded)
        stopped = True

    try:
        asyncio.run(until_stopped())
    except (DoesNotFitError, StorageError, WorkerFailedError) as error:
        # The options are right, but the machine cannot do it now.
        return complain(str(error), FAILED)
    except ServerError as error:
        return complain(str(error))
    except ListenError as error:
        logger.debug("cannot serve", exc_info=error)
        # gRPC says no more than that it failed to bind.
        taken = "the address is in use, or is not one of this machine"
        reason = taken if "Failed to bind" in str(error) else error
        return complain(f"cannot serve on {config.network.listen}: {reason}")
    except (MemoryError, RuntimeError) as error:
        if not stopped:
            raise
        # The server has stopped in good order; asyncio could not start a thread to close its own executor.
        logger.debug("the event loop did not end in good order", exc_info=error)
    return OK


class Announcement:
    """Tells what is served, where, and how to try it.

    The address alone goes to stdout, for programs. The rest goes to stderr, or to the log where that is JSON,
    so that every line of stderr stays an object.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config

    def loaded(self, models: Sequence[ModelInfo]) -> None:
        """Shows what is served, as a table."""
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
        """Shows where it is served, and a client's command that finds a first circuit."""
        # The one line on stdout, which programs that start a server read.
        print(f"pahq-server listening on {address}", flush=True)
        self._tell([f"try it: {client_command(address, self._config)}"])

    def _tell(self, lines: Sequence[str]) -> None:
        if not logger.isEnabledFor(logging.INFO):
            return
        for line in lines:
            if logs.writes_json():
                logger.info("%s", line)
            else:
                print(line, file=sys.stderr, flush=True)


def client_command(address: str, config: ServerConfig) -> str:
    """Returns a client's command that this server answers; capitals stand for what only the user knows.

    Args:
        address: ``HOST:PORT`` at which the server listens.
        config: config of the server.
    """
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", "[::]"):  # everywhere: by the name that others may know
        host = socket.gethostname()
    words = ["pahq", "discover", "--server", f"{host}:{port}"]
    words += ["--model", DEMO, "--task", "ioi", "--threshold", "0.05"]
    if config.access.tls_cert is not None:
        words += ["--tls-ca", "CA.crt"]
    if config.access.tls_client_ca is not None:
        words += ["--tls-cert", "YOURS.crt", "--tls-key", "YOURS.key"]
    if config.access.config(config.network.listen).auth == "tokens":
        words.insert(0, "PAHQ_TOKEN=TOKEN")
    return " ".join(words)
