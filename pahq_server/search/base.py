"""What every search offers to the job that runs it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import BaseCircuit, PatchedPass
from pahq_server.core.graph import Graph
from pahq_server.core.verdict import SearchResult, Verdict

# Yields hypotheses, receives their scores in the same order, returns the result.
Steps = Generator[Sequence[PatchedPass], Sequence[float], SearchResult]


@dataclass(frozen=True)
class SearchProgress:
    """How far a search is: edges decided and, of those, kept; metric of the current circuit."""

    decided: int
    kept: int
    metric: float


@dataclass
class SearchStatistics:
    """How much work a search asked for. Rows that were scored in vain are ``wasted``."""

    batches: int = 0
    rows: int = 0
    wasted: int = 0


class Search(Protocol):
    """A search over the edges of one graph."""

    verdicts: list[Verdict]
    statistics: SearchStatistics

    def run(self) -> Steps:
        """Starts, or goes on after the verdicts that are there already."""
        ...

    def progress(self) -> SearchProgress: ...


def endpoints(graph: Graph, circuit: Circuit) -> tuple[PatchedPass, PatchedPass, PatchedPass]:
    """Rows that measure a circuit, the full model and the empty circuit, each from scratch."""
    return (
        PatchedPass(BaseCircuit(circuit)),
        PatchedPass(BaseCircuit(Circuit.full(graph))),
        PatchedPass(BaseCircuit(Circuit.empty(graph))),
    )
