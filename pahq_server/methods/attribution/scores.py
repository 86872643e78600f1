"""Edge scores: the artifact of kind ``edge_scores``, and the sums that are kept in the journal until then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.graph import Graph

KIND, VERSION = "edge_scores", 1

# What the journal of one job may take, about: one record holds a number for every edge.
JOURNAL_BYTES = 64 << 20
MOST_RECORDS = 64


@dataclass
class PartialScores:
    """Scores summed over the prompts that are done.

    A journal record is ``prompts`` as an int64, then ``scores``. Each record holds the whole sums, so only
    the last one is read.

    Args:
        prompts: how many prompts are done; they are the first ones of the task.
        scores: sums over these prompts, float64, shape [edges].
    """

    prompts: int
    scores: NDArray[np.float64]

    @classmethod
    def from_journal(cls, journal: Sequence[bytes], graph: Graph) -> PartialScores:
        """Reads the last record; zeros if there is none. Raises ValueError for what is no journal."""
        size = 8 * (1 + graph.num_edges)
        pieces = [piece for piece in journal if piece]
        if not pieces:
            return cls(0, np.zeros(graph.num_edges))
        if any(len(piece) % size for piece in pieces):
            raise ValueError(f"a journal of edge scores must consist of records of {size} bytes")
        last = pieces[-1][-size:]
        prompts = int.from_bytes(last[:8], "little", signed=True)
        return cls(prompts, np.frombuffer(last, "<f8", offset=8).astype(np.float64))

    def record(self) -> bytes:
        """Returns the sums as a record."""
        return self.prompts.to_bytes(8, "little", signed=True) + self.scores.astype("<f8").tobytes()


def parts_per_record(parts: int, graph: Graph) -> int:
    """Returns after how many parts of the prompts a record is due, so that the journal stays small."""
    records = min(MOST_RECORDS, max(1, JOURNAL_BYTES // (8 * (1 + graph.num_edges))))
    return -(-parts // records)


def edge_scores_bytes(
    method: str,
    metric: str,
    graph: Graph,
    scores: NDArray[np.float64],
    full: float | None = None,
    empty: float | None = None,
) -> bytes:
    """Packs edge scores as an artifact.

    Args:
        method, metric: their names.
        graph: whose edges have the scores.
        scores: float64, shape [edges], in the order of `Graph.edge`.
        full, empty: the metric of the full model and of the empty circuit; None where unknown.
    """
    header = {
        "kind": KIND,
        "version": VERSION,
        "graph": asdict(graph),
        "metric": {"name": metric, "full": full, "empty": empty},
        "method": method,
    }
    return pack(header, {"scores": scores})
