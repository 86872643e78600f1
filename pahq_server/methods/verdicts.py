"""Verdicts: what a search decides about edges, one per test, and how journals hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import Circuit

# 26 bytes per verdict, with every bit of the scores. Stored journals depend on it, so it never changes.
_VERDICT = np.dtype(
    [("gate", "?"), ("index", "<i8"), ("score", "<f8"), ("delta", "<f8"), ("kept", "?")], align=False
)

VERDICT_BYTES = _VERDICT.itemsize


@dataclass(frozen=True)
class Verdict:
    """The outcome of one test: what the metric does when an edge, or all edges of a gate, are removed.

    Args:
        gate: whether all kept incoming edges of a receiver were tested at once.
        index: the edge, or for a gate the receiver.
        score: the metric of the circuit without them.
        delta: ``score`` minus the metric of the circuit that they were removed from.
        kept: whether the edge or the gate stays.
    """

    gate: bool
    index: int
    score: float
    delta: float
    kept: bool


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        circuit: the kept edges.
        verdicts: one per test, in the order of decision.
        metric_value, metric_full, metric_empty: the metric of the circuit, the full model and the empty
            circuit.
    """

    circuit: Circuit
    verdicts: tuple[Verdict, ...]
    metric_value: float
    metric_full: float
    metric_empty: float

    @property
    def scores(self) -> NDArray[np.float64]:
        """The delta of each edge's own verdict, NaN if it has none: float64, shape [edges]."""
        scores = np.full(self.circuit.graph.num_edges, np.nan)
        for verdict in self.verdicts:
            if not verdict.gate:
                scores[verdict.index] = verdict.delta
        return scores


def verdict_table(verdicts: Sequence[Verdict]) -> NDArray[np.void]:
    """Returns verdicts as a structured array of shape [verdicts] with the fields of `Verdict`."""
    return np.array([(v.gate, v.index, v.score, v.delta, v.kept) for v in verdicts], dtype=_VERDICT)


def pack_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """Writes verdicts as journal records of `VERDICT_BYTES` each."""
    return verdict_table(verdicts).tobytes()


def unpack_verdicts(data: bytes) -> list[Verdict]:
    """Reads what `pack_verdicts` wrote. Raises ValueError for other bytes."""
    return [Verdict(*fields) for fields in np.frombuffer(data, dtype=_VERDICT).tolist()]
