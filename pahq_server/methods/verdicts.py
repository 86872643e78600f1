"""Verdicts: what a search decides about edges, one per test, and how journals hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import Circuit

# 26 bytes per verdict, with every bit of the scores. Stored journals depend on it, so it never changes. Which
# edges a group held follows from the order of tests and from the verdicts before it.
_VERDICT = np.dtype(
    [("gate", "?"), ("index", "<i8"), ("score", "<f8"), ("delta", "<f8"), ("kept", "?")], align=False
)

VERDICT_BYTES = _VERDICT.itemsize

# Artifacts also say what was tested at once.
_TESTED = np.dtype([*_VERDICT.descr, ("last", "<i8"), ("size", "<i8")], align=False)


@dataclass(frozen=True)
class Verdict:
    """The outcome of one test: what the metric does when an edge, a group of edges or a gate is removed.

    Args:
        gate: whether all kept incoming edges of a receiver were tested at once.
        index: the edge, the first edge of a group, or for a gate the receiver.
        score: the metric of the circuit without them.
        delta: ``score`` minus the metric of the circuit that they were removed from.
        kept: whether the edge, the group or the gate stays.
        last: the last edge of a group; None if this is none. A group is all edges from its first to its last
            one, in the order of ACDC's tests, that the circuit had.
        size: how many edges the group has; 1 if this is none. Journals tell neither it nor ``last``.
    """

    gate: bool
    index: int
    score: float
    delta: float
    kept: bool
    last: int | None = None
    size: int = 1

    @property
    def of_one_edge(self) -> bool:
        """Whether it decides a single edge."""
        return not self.gate and self.size == 1


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Args:
        circuit: the kept edges.
        verdicts: one per test, in the order of decision.
        metric_value, metric_full, metric_empty: the metric of the circuit, the full model and the empty
            circuit.
        threshold: below which edges were removed; None if the search removes none.
        chose_threshold: whether the search chose it, so that only its result tells it.
        warnings: what the search itself has to tell, in full sentences.
        metric_start: the metric of the circuit that the search started from; None if that is the full graph.
    """

    circuit: Circuit
    verdicts: tuple[Verdict, ...]
    metric_value: float
    metric_full: float
    metric_empty: float
    threshold: float | None = None
    chose_threshold: bool = False
    warnings: tuple[str, ...] = ()
    metric_start: float | None = None

    @property
    def scores(self) -> NDArray[np.float64]:
        """The delta of each edge's own verdict, NaN if it has none: float64, shape [edges]."""
        scores = np.full(self.circuit.graph.num_edges, np.nan)
        for verdict in self.verdicts:
            if verdict.of_one_edge:
                scores[verdict.index] = verdict.delta
        return scores


def verdict_table(verdicts: Sequence[Verdict]) -> NDArray[np.void]:
    """Returns verdicts as a structured array of shape [verdicts] with the fields of `Verdict`.

    ``last`` is ``index`` where a verdict has none.
    """
    rows = [
        (v.gate, v.index, v.score, v.delta, v.kept, v.index if v.last is None else v.last, v.size)
        for v in verdicts
    ]
    return np.array(rows, dtype=_TESTED)


def pack_verdicts(verdicts: Sequence[Verdict]) -> bytes:
    """Writes verdicts as journal records of `VERDICT_BYTES` each."""
    return np.array([(v.gate, v.index, v.score, v.delta, v.kept) for v in verdicts], dtype=_VERDICT).tobytes()


def unpack_verdicts(data: bytes) -> list[Verdict]:
    """Reads what `pack_verdicts` wrote. Raises ValueError for other bytes."""
    return [Verdict(*fields) for fields in np.frombuffer(data, dtype=_VERDICT).tolist()]


# A search that needs the metric of a circuit before it can go on puts that into its journal, too.
_MEASURED = -1


def measured_record(value: float) -> Verdict:
    """Returns the journal record of a measured metric."""
    return Verdict(gate=False, index=_MEASURED, score=value, delta=0.0, kept=True)


def is_measured_record(record: Verdict) -> bool:
    """Tells whether a journal record is that of a measured metric."""
    return record.index == _MEASURED
