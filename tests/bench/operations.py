"""How many operations the passes of a batch need: live nodes times live positions, wasted passes included.

Counted as the textbook forward pass would do them (each projection once per changed receiver, W_O once
per changed head), so the count does not depend on how cleverly they are done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.graph import Graph
from pahq_server.engine.sparse.batch_forward import BatchForward
from pahq_server.engine.sparse.unpatched import is_head


def needed_operations(forward: BatchForward) -> NDArray[np.float64]:
    """Multiplications and additions per pass, after `BatchForward.run`: [passes]."""
    arch, batch, graph = forward.weights.arch, forward.batch, forward.graph
    ends = np.array([base.tokens.end for base in batch.bases], dtype=np.float64)[batch.base_of]
    counts = np.zeros(len(batch))
    counts += batch.counts(graph.logits)[batch.base_of] * (2.0 * arch.d_model * arch.output_vocabulary)
    for receiver, variant in forward.changed.items():
        if graph.receiver(receiver).kind == "mlp":
            continue
        tokens = batch.counts(receiver)[batch.base_of].astype(np.float64)
        counts += (variant >= 0) * (2.0 * tokens * arch.d_model * arch.d_head)
    for sender, change in forward.senders.items():
        tokens = batch.counts(_own_input(graph, sender))[batch.base_of].astype(np.float64)
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
