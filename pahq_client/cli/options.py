"""Reads options that several commands have: the task, and the server to connect to."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pahq_client import files
from pahq_client.circuit import Circuit
from pahq_client.circuit_file import parse_json
from pahq_client.client import Client
from pahq_client.connection import TlsConfig
from pahq_client.discover import connect
from pahq_client.embedded import DEMO
from pahq_client.errors import InvalidRequest
from pahq_client.scores import EdgeScores
from pahq_client.task import BuiltinTask, Task

_KEYS = ("clean", "corrupted", "answers", "wrong_answers", "positions")


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


def load_result(path: str, allow_partial: bool = False) -> Circuit | EdgeScores:
    """Reads a circuit file, or a file of scores."""
    start = files.read(path)[:8]
    # Scores begin with a length; a circuit's first eight characters of text would be far too large a one.
    if 8 < int.from_bytes(start, "little") < 1 << 48:
        return EdgeScores.load(path, allow_partial=allow_partial)
    return Circuit.load(path, allow_partial=allow_partial)


def read_task(arguments: Namespace) -> Task | BuiltinTask:
    """Reads the task that ``--task`` names: a built-in one, or a JSON file.

    Raises:
        InvalidRequest: the file cannot be read, or does not describe a task.
    """
    size = {name: getattr(arguments, name) for name in ("num_prompts", "seed")}
    given = {name: value for name, value in size.items() if value is not None}
    path = Path(arguments.task)
    if path.suffix != ".json" and path.name == arguments.task:
        return BuiltinTask(arguments.task, **given)
    if given:
        raise InvalidRequest(f"task.{next(iter(given))}", "is for built-in tasks, not for files")
    return _task(_read(path), path)


def _read(path: Path) -> Any:
    try:
        return parse_json(files.read(path))
    except OSError as error:
        raise InvalidRequest("task", f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InvalidRequest("task", f"{path} is not JSON: {error}") from None


def _task(content: Any, path: Path) -> Task:
    if not isinstance(content, dict) or "clean" not in content:
        raise InvalidRequest("task", f"{path} must hold an object with the key 'clean'")
    unknown = [key for key in content if key not in _KEYS]
    if unknown:
        raise InvalidRequest(
            "task", f"{path} has the unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}"
        )
    return Task(**content)
