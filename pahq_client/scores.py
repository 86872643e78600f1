"""Edge scores: the result of attribution methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pahq_client.display import circuits
from pahq_client.graph import Graph
from pahq_client.results import WithProvenance

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, repr=False)
class EdgeScores(WithProvenance):
    """A score for every edge of a graph, for example from edge attribution patching (``method="eap"``).

    Args:
        scores: float64, shape [edges], in the order of ``graph.edge_names()``: how much ablating an edge is
            estimated to change the metric.
        graph: the graph that the edges belong to.
        method: the method that gave the scores.
        metric: name of the metric. Lower is better.
        full: the metric of the full model; NaN if a partial result does not know it.
        empty: the metric of the empty circuit; NaN if a partial result does not know it.
        provenance: as that of a `Circuit`.
        partial: whether the job was cancelled or failed before its end.
    """

    scores: NDArray[np.float64]
    graph: Graph
    method: str
    metric: str
    full: float
    empty: float
    provenance: Mapping[str, Any] = field(default_factory=dict)
    partial: bool = False

    def __repr__(self) -> str:
        return f"EdgeScores({circuits.summarize_scores(self)})"
