"""How results are printed: as lines, or as one JSON document; warnings go to stderr in either case."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from pahq_client import circuit_file, render, words
from pahq_client.caution import readable as one_line
from pahq_client.circuit import Circuit
from pahq_client.errors import PahqWarning
from pahq_client.events import JobInfo
from pahq_client.results import Estimate, Evaluation

__all__ = ["one_line", "print_answer", "print_circuit", "print_json", "print_table", "warnings_on_stderr"]


def print_circuit(circuit: Circuit, as_json: bool) -> None:
    """A summary, then an edge per line."""
    if as_json:
        print(circuit_file.encode(circuit, "circuit").decode())
        return
    print(f"# {render.summary(circuit)}")
    for edge in circuit.edges:
        print(edge if edge.score is None else f"{edge}\t{edge.score:.6g}")


def print_answer(answer: Evaluation | Estimate | JobInfo, as_json: bool) -> None:
    """What a server told, a line per value. Its warnings are on stderr, and in the JSON if there are any."""
    print_table([fields(answer, as_json)], as_json, single=True)


def fields(answer: Evaluation | Estimate | JobInfo, as_json: bool) -> dict[str, Any]:
    """The fields of an answer by name, with what is computed from them."""
    values = dataclasses.asdict(answer)
    if not (as_json and answer.warnings):
        del values["warnings"]
    if isinstance(answer, Evaluation) or (isinstance(answer, JobInfo) and answer.metric_full is not None):
        values["faithfulness"] = answer.faithfulness
        if not as_json and answer.faithfulness is None:
            values["faithfulness"] = words.NO_FAITHFULNESS
    return values


def print_table(rows: list[dict[str, Any]], as_json: bool, single: bool = False) -> None:
    """A line per value, an empty line between rows."""
    if as_json:
        print_json(rows[0] if single else rows)
        return
    print("\n\n".join("\n".join(f"{key}: {_plain(value)}" for key, value in row.items()) for row in rows))


def print_json(value: object) -> None:
    """One document, on one line. Times are written as in ISO 8601."""
    print(json.dumps(value, default=_time), flush=True)


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """While the body runs, a PahqWarning is a line on stderr that tells no place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, PahqWarning):
                print(f"pahq: warning: {one_line(str(message))}", file=sys.stderr)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _time(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
