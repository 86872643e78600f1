"""What the commands of ``pahq`` do: results to stdout, everything else to stderr."""

from __future__ import annotations

import dataclasses
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from pahq_client import comparison
from pahq_client.circuit import Circuit
from pahq_client.cli.connection import connection, tls
from pahq_client.cli.jobs import OPTIONS, detach
from pahq_client.cli.output import print_answer, print_circuit, print_json, print_table
from pahq_client.cli.task_file import read_task
from pahq_client.discover import discover as find
from pahq_client.errors import InvalidRequest
from pahq_client.files import write_atomically


def discover(arguments: Namespace) -> None:
    """Finds a circuit, prints it and writes the files asked for."""
    if arguments.detach:
        detach(arguments)
        return
    if arguments.estimate:
        estimate(arguments)
        return
    for field in ("out", "dot"):
        _check_writable(field, getattr(arguments, field))  # before hours of work, not after
    names = ("model", "threshold", *OPTIONS, "server", "token", "timeout")
    options = {name: getattr(arguments, name) for name in names}
    circuit = find(task=read_task(arguments), tls=tls(arguments), progress=not arguments.quiet, **options)
    try:
        if arguments.out is not None:
            circuit.save(arguments.out)
        if arguments.dot is not None:
            write_atomically(arguments.dot, circuit.to_dot().encode())
    finally:  # a full disk must not lose the result
        print_circuit(circuit, arguments.json)


def estimate(arguments: Namespace) -> None:
    """Tells what a discovery would take."""
    options = {name: getattr(arguments, name) for name in OPTIONS}
    with connection(arguments, arguments.model) as (client, model):
        found = client.estimate(model, read_task(arguments), arguments.threshold, **options)
    print_answer(found, arguments.json)


def evaluate(arguments: Namespace) -> None:
    """Measures a circuit file."""
    circuit, task = Circuit.load(arguments.circuit), read_task(arguments)
    names = ("metric", "ablation", "kv_receivers", "precision", "allow_other_model")
    options: Any = {name: getattr(arguments, name) for name in names}
    with connection(arguments, arguments.model) as (client, model):
        evaluation = client.evaluate(model, task, circuit, **options)
    print_answer(evaluation, arguments.json)


def models(arguments: Namespace) -> None:
    """Lists the served models."""
    with connection(arguments) as (client, _):
        print_table([dataclasses.asdict(model) for model in client.models()], arguments.json)


def info(arguments: Namespace) -> None:
    """Describes the server."""
    with connection(arguments) as (client, _):
        print_table([dataclasses.asdict(client.server_info())], arguments.json, single=True)


def compare(arguments: Namespace) -> None:
    """Compares two circuit files."""
    result = comparison.compare(Circuit.load(arguments.a), Circuit.load(arguments.b))
    lists = dataclasses.asdict(result)
    if arguments.json:
        print_json({**lists, "jaccard": result.jaccard})
        return
    print(f"jaccard {result.jaccard:.6g}")
    for name, edges in lists.items():
        print(f"{name} {len(edges)}", *edges, sep="\n  ")


def _check_writable(field: str, path: str | None) -> None:
    if path is None:
        return
    folder = Path(os.path.realpath(path)).parent
    if Path(path).is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InvalidRequest(field, f"cannot write {path}")
