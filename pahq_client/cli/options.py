"""Reads options that several commands have: the task, and the server to connect to."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pahq_client.client import Client
from pahq_client.connection import TlsConfig
from pahq_client.discover import connect
from pahq_client.embedded import DEMO
from pahq_client.errors import InvalidRequest
from pahq_client.task import BuiltinTask, Task

# By the ending of a task's file.
_READERS: dict[str, Callable[[Path], Task]] = {
    ".json": Task.load,
    ".jsonl": Task.from_jsonl,
    ".csv": Task.from_csv,
}


@contextmanager
def connection(arguments: Namespace, model: str = DEMO) -> Iterator[tuple[Client, str]]:
    """Connects to the server that the options name, or to an embedded one.

    Gives a client, and the model's name on its server.
    """
    with connect(model, arguments.server, arguments.token, tls(arguments)) as connected:
        yield connected


def tls(arguments: Namespace) -> bool | TlsConfig:
    """Returns whether and how to encrypt."""
    config = TlsConfig(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return bool(arguments.tls) if config == TlsConfig() else config


def waiting(arguments: Namespace) -> dict[str, Any]:
    """Returns where a job is to run, and how long."""
    options = {name: getattr(arguments, name) for name in ("server", "token", "timeout")}
    return {**options, "tls": tls(arguments), "progress": not arguments.quiet}


def read_task(arguments: Namespace) -> Task | BuiltinTask:
    """Reads the task that ``--task`` names: a built-in one, or a file of JSON, JSON Lines or CSV.

    Raises:
        InvalidRequest: the file cannot be read, or does not describe a task.
    """
    size = {name: getattr(arguments, name) for name in ("num_prompts", "seed")}
    given = {name: value for name, value in size.items() if value is not None}
    path = Path(arguments.task)
    if path.suffix and path.suffix not in _READERS:
        known = ", ".join(_READERS)
        raise InvalidRequest("--task", f"cannot read {arguments.task!r}: files end in one of {known}")
    if not path.suffix and path.name == arguments.task:
        return BuiltinTask(arguments.task, **given)
    if given:
        raise InvalidRequest(f"task.{next(iter(given))}", "is for built-in tasks, not for files")
    try:
        return _READERS.get(path.suffix, Task.load)(path)
    except OSError as error:
        raise InvalidRequest("task", f"cannot read {path}: {error.strerror}") from None
