"""Verdicts, circuits and graphs as bytes and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult, Verdict

# 26 bytes per verdict, and 8 more per run for its checksum; scores are kept to the last bit.
_VERDICT = np.dtype(
    [("gate", "?"), ("index", "<i8"), ("score", "<f8"), ("delta", "<f8"), ("kept", "?")], align=False
)

VERDICT_BYTES = _VERDICT.itemsize


def pack_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    rows = [(v.gate, v.index, v.score, v.delta, v.kept) for v in verdicts]
    return np.array(rows, dtype=_VERDICT).tobytes()


def unpack_verdicts(data: bytes) -> list[Verdict]:
    return [Verdict(*fields) for fields in np.frombuffer(data, dtype=_VERDICT).tolist()]


def pack_circuit(circuit: Circuit) -> bytes:
    return circuit.key


def unpack_circuit(graph: Graph, data: bytes) -> Circuit:
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8))
    if not graph.num_edges <= len(bits) < graph.num_edges + 8:
        raise ValueError(f"{len(data)} bytes are no circuit of a graph of {graph.num_edges} edges")
    bits = bits[: graph.num_edges]
    return Circuit(graph, bits.astype(bool))


def found(
    circuit: Circuit, verdicts: Iterable[Verdict], value: float, full: float, empty: float
) -> SearchResult:
    """The result of a search again, whose scores are the deltas of its verdicts."""
    verdicts = tuple(verdicts)
    scores = np.full(circuit.graph.num_edges, np.nan)
    for verdict in verdicts:
        if not verdict.gate:
            scores[verdict.index] = verdict.delta
    return SearchResult(circuit, scores, verdicts, value, full, empty)


def to_json(value: object) -> str:
    """Equal for equal values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def graph_to_json(graph: Graph) -> str:
    return to_json(asdict(graph))


def graph_from_json(text: str) -> Graph:
    fields: dict[str, Any] = json.loads(text)
    return Graph(**fields)
