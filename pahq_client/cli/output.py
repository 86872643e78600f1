"""How results are printed: as lines, or as one JSON document."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from pahq_client import circuit_file, render
from pahq_client.circuit import Circuit


def print_circuit(circuit: Circuit, as_json: bool) -> None:
    """A summary, then an edge per line."""
    if as_json:
        print(circuit_file.encode(circuit, "circuit").decode())
        return
    print(f"# {render.summary(circuit)}")
    for edge in circuit.edges:
        print(edge if edge.score is None else f"{edge}\t{edge.score:.6g}")


def print_table(rows: list[dict[str, Any]], as_json: bool, single: bool = False) -> None:
    """A line per value, an empty line between rows."""
    if as_json:
        print_json(rows[0] if single else rows)
        return
    print("\n\n".join("\n".join(f"{key}: {_plain(value)}" for key, value in row.items()) for row in rows))


def print_json(value: object) -> None:
    """One document, on one line. Times are written as in ISO 8601."""
    print(json.dumps(value, default=_time), flush=True)


def one_line(text: str) -> str:
    """The text without line breaks, and without anything that a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    return one_line(", ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _time(value: object) -> str:
    assert isinstance(value, datetime)
    return value.isoformat()
