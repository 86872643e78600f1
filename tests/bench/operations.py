"""How many operations the rows of a sweep need: live nodes times live positions, wasted rows included.

Counted as the textbook forward pass would do them (each projection once per changed receiver, W_O once
per changed head), so the count does not depend on how cleverly they are done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.batch_forward import BatchForward
from pahq_server.engine.sparse.unpatched import is_head


def needed_operations(sweep: BatchForward) -> NDArray[np.float64]:
    """Multiplications and additions per row, after `BatchForward.run`: shape [R]."""
    arch, rows, graph = sweep.weights.arch, sweep.batch, sweep.graph
    ends = np.array([base.tokens.end for base in rows.bases], dtype=np.float64)[rows.base_of]
    counts = np.zeros(len(rows))
    counts += rows.counts(graph.logits)[rows.base_of] * (2.0 * arch.d_model * arch.output_vocabulary)
    for receiver, variant in sweep.changed.items():
        if graph.receiver(receiver).kind == "mlp":
            continue
        tokens = rows.counts(receiver)[rows.base_of].astype(np.float64)
        counts += (variant >= 0) * (2.0 * tokens * arch.d_model * arch.d_head)
    for sender, change in sweep.senders.items():
        tokens = rows.counts(_own_input(graph, sender))[rows.base_of].astype(np.float64)
        if is_head(graph, sender):
            cost = tokens * (4.0 * ends * arch.d_head + 2.0 * arch.d_head * arch.d_model)
        else:
            cost = tokens * ((6.0 if arch.gated else 4.0) * arch.d_mlp * arch.d_model)
        counts += (change.variant >= 0) * cost
    return counts


def _own_input(graph: Graph, sender: int) -> int:
    """The receiver whose tokens are those of the sender's output: q of a head, or the MLP's."""
    layer, unit = divmod(sender - 1, graph.senders_per_layer)
    return graph.receiver_of("mlp", layer) if unit == graph.heads else graph.receiver_of("q", layer, unit)
