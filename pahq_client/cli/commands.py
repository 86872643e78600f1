"""What the commands of ``pahq`` do: results to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pahq_client import circuit_file, comparison, render
from pahq_client.circuit import Circuit
from pahq_client.cli.task_file import read_task
from pahq_client.client import Client
from pahq_client.discover import connect
from pahq_client.discover import discover as find
from pahq_client.embedded import DEMO
from pahq_client.endpoint import TlsConfig
from pahq_client.errors import InvalidRequest
from pahq_client.files import write_atomically


def discover(arguments: Namespace) -> None:
    """Finds a circuit, prints it and writes the files asked for."""
    for field in ("out", "dot"):
        _check_writable(field, getattr(arguments, field))  # before hours of work, not after
    shared = ("model", "threshold", "method", "metric", "ablation", "gates", "kv_receivers", "precision")
    options = {name: getattr(arguments, name) for name in (*shared, "server", "token", "timeout")}
    circuit = find(task=read_task(arguments), tls=_tls(arguments), progress=not arguments.quiet, **options)
    try:
        if arguments.out is not None:
            circuit.save(arguments.out)
        if arguments.dot is not None:
            write_atomically(arguments.dot, circuit.to_dot().encode())
    finally:  # a full disk must not lose the result
        _print_circuit(circuit, arguments.json)


def evaluate(arguments: Namespace) -> None:
    """Measures a circuit file."""
    circuit, task = Circuit.load(arguments.circuit), read_task(arguments)
    names = ("metric", "ablation", "kv_receivers", "precision")
    options: Any = {name: getattr(arguments, name) for name in names}
    with _connect(arguments, arguments.model) as (client, model):
        evaluation = client.evaluate(model, task, circuit, **options)
    values = {**dataclasses.asdict(evaluation), "faithfulness": evaluation.faithfulness}
    _print_table([values], arguments.json, single=True)


def models(arguments: Namespace) -> None:
    """Lists the served models."""
    with _connect(arguments, DEMO) as (client, _):
        _print_table([dataclasses.asdict(model) for model in client.models()], arguments.json)


def info(arguments: Namespace) -> None:
    """Describes the server."""
    with _connect(arguments, DEMO) as (client, _):
        _print_table([dataclasses.asdict(client.server_info())], arguments.json, single=True)


def compare(arguments: Namespace) -> None:
    """Compares two circuit files."""
    result = comparison.compare(Circuit.load(arguments.a), Circuit.load(arguments.b))
    lists = dataclasses.asdict(result)
    if arguments.json:
        print(json.dumps({**lists, "jaccard": result.jaccard}))
        return
    print(f"jaccard {result.jaccard:.6g}")
    for name, edges in lists.items():
        print(f"{name} {len(edges)}", *edges, sep="\n  ")


def show(arguments: Namespace) -> None:
    """Prints a circuit file."""
    _print_circuit(Circuit.load(arguments.file), arguments.json)


@contextmanager
def _connect(arguments: Namespace, model: str) -> Iterator[tuple[Client, str]]:
    with connect(model, arguments.server, arguments.token, _tls(arguments)) as connection:
        yield connection


def _tls(arguments: Namespace) -> bool | TlsConfig:
    config = TlsConfig(arguments.tls_ca, arguments.tls_cert, arguments.tls_key)
    return arguments.tls if config == TlsConfig() else config


def _check_writable(field: str, path: str | None) -> None:
    if path is None:
        return
    folder = Path(os.path.realpath(path)).parent
    if Path(path).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(field, f"cannot write {path}")


def _print_circuit(circuit: Circuit, as_json: bool) -> None:
    if as_json:
        print(circuit_file.encode(circuit, "circuit").decode())
        return
    print(f"# {render.summary(circuit)}")
    for edge in circuit.edges:
        print(edge if edge.score is None else f"{edge}\t{edge.score:.6g}")


def _print_table(rows: list[dict[str, Any]], as_json: bool, single: bool = False) -> None:
    if as_json:
        print(json.dumps(rows[0] if single else rows))
        return
    print("\n\n".join("\n".join(f"{key}: {_plain(value)}" for key, value in row.items()) for row in rows))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
