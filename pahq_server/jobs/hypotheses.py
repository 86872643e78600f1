"""Circuits as clients describe them, and the rows that measure them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.circuit import BaseCircuit, Circuit, PatchedPass
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.graph import Graph

# Names that a reader remembers: searches repeat them in every call.
KNOWN_NAMES = 1 << 16


@dataclass(frozen=True)
class Hypothesis:
    """A circuit by names of edges.

    Args:
        names: of edges; repetitions count once.
        complete: whether these are all of its edges, else those that the base circuit has beyond it.
    """

    names: Sequence[str]
    complete: bool


@dataclass(frozen=True, eq=False)
class Reading:
    """A hypothesis found valid for a base. Compact: its row is built when it is needed.

    Args:
        base: what the hypothesis is relative to.
        edges: indices, each once: ascending, but for the one named last, which stays last.
        complete: see `Hypothesis`.
    """

    base: BaseCircuit
    edges: NDArray[np.int64]
    complete: bool

    @property
    def row(self) -> PatchedPass:
        """What measures the circuit: from the base, or from scratch if the hypothesis is complete."""
        return (
            PatchedPass(BaseCircuit(self.circuit))
            if self.complete
            else PatchedPass(self.base, tuple(self.edges.tolist()))
        )

    @property
    def circuit(self) -> Circuit:
        kept = np.zeros_like(self.base.circuit.kept) if self.complete else self.base.circuit.kept.copy()
        kept[self.edges] = self.complete
        return Circuit(self.base.circuit.graph, kept)


class HypothesisReader:
    """Reads hypotheses about one graph. May be used from any thread."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._edge = lru_cache(KNOWN_NAMES)(graph.parse_edge)

    def read(self, field: str, hypothesis: Hypothesis, base: BaseCircuit) -> Reading:
        """Raises InvalidRequestError for an edge that the graph, or the base to remove it from, lacks.

        Args:
            field: path of the hypothesis in the request.
            hypothesis: what to read.
            base: the circuit that it is relative to.
        """
        field = f"{field}.{'edges' if hypothesis.complete else 'removed'}"
        named = np.fromiter(self._edges(field, hypothesis.names), dtype=np.int64)
        # Policies that promote a head go by the last edge.
        edges = np.append(np.setdiff1d(named, named[-1:]), named[-1:])
        if not hypothesis.complete:
            missing = edges[~base.circuit.kept[edges]]
            if len(missing):
                name = self._graph.edge_name(int(missing[0]))
                raise InvalidRequestError(field, f"the base circuit has no edge {name!r}")
        return Reading(base, edges, hypothesis.complete)

    def _edges(self, field: str, names: Iterable[str]) -> Iterator[int]:
        try:
            yield from map(self._edge, names)
        except InvalidRequestError as error:
            raise InvalidRequestError(field, error.detail) from None
