"""How many operations the rows of a sweep need: live nodes times live positions, wasted rows included.

Counted as the textbook forward pass would do them (each projection once per changed receiver, W_O once
per changed head), so the count does not depend on how cleverly they are done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pahq_server.engine.sparse.sweep import Sweep


def needed_operations(sweep: Sweep) -> NDArray[np.float64]:
    """Multiplications and additions per row, after `Sweep.run`: shape [R]."""
    arch, tokens = sweep.weights.arch, sweep.base.tokens
    counts = np.zeros(len(sweep.rows))
    for receiver, variant in sweep.moved.items():
        places = tokens.prompts * tokens.count(sweep.plan.receivers[receiver])
        counts += (variant >= 0) * (2.0 * places * arch.d_model * arch.d_head)
    for sender, change in sweep.senders.items():
        per_prompt = tokens.count(sweep.plan.needed[sender])
        places = tokens.prompts * per_prompt
        if sweep.base.reference.is_head(sender):
            attention = 4.0 * places * tokens.end * arch.d_head
            cost = attention + 2.0 * places * arch.d_head * arch.d_model
        else:
            cost = (6.0 if arch.gated else 4.0) * places * arch.d_mlp * arch.d_model
        counts += (change.variant >= 0) * cost
    final = tokens.metric.numel() * arch.d_model * arch.output_vocabulary * 2.0
    return counts + final
