"""How much memory a row takes while it is swept, known before it is."""

from __future__ import annotations

import numpy as np

from pahq_server.engine.sparse.base import Base
from pahq_server.engine.sparse.plan import CODES

DEFAULT_SCRATCH = 512 << 20


def row_bytes(base: Base, keep: bool) -> int:
    """Most bytes that a row of a base may take: changes of all live nodes and states of their receivers.

    Args:
        base: of the row.
        keep: whether the row becomes a base, so that the states of all heads' receivers are kept. Otherwise
            only those of one layer are there at a time.
    """
    graph, arch, plan = base.graph, base.weights.arch, base.plan
    counts = np.array([0, *(base.tokens.count(places) for places in CODES)], dtype=np.int64)
    tokens_S = counts[plan.sender_codes][1:].reshape(graph.layers, graph.senders_per_layer)
    changes = (
        int(tokens_S[:, : graph.heads].sum()) * arch.d_head
        + int(tokens_S[:, graph.heads :].sum()) * arch.d_model
    )
    tokens_R = counts[plan.receiver_codes][:-1].reshape(graph.layers, graph.receivers_per_layer)
    states = tokens_R[:, : graph.heads + 2 * graph.kv_units].sum(1) * (2 * arch.d_head + 1)
    of_states = int(states.sum() if keep else states.max(initial=0))
    # The input of a receiver and the inputs of the metric come on top.
    inputs = 3 * int(counts.max()) * arch.d_model
    return (changes + of_states + inputs) * base.weights.dtype.itemsize
