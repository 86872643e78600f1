"""What all bases of a job share: the model, the prompts, and the two unpatched passes.

Shape suffixes: P prompts, C places, T positions, D d_model, K d_head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.core.graph import INPUT
from pahq_server.engine.products import matmul
from pahq_server.engine.sparse.clean import PassValues
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.engine.sparse.weights import SparseWeights


@dataclass(frozen=True)
class Reference:
    """What all bases of a job share."""

    weights: SparseWeights
    tokens: Tokens
    clean: PassValues
    ablated: PassValues

    def stream(self, values: PassValues, receiver: int) -> Tensor:
        """The full residual stream that a receiver would read: [P, T, D]."""
        kind, layer, _ = self.weights.graph.receiver(receiver)
        if kind == "logits":
            return values.final
        return (values.mlp_in if kind == "mlp" else values.attention_in)[layer]

    def output(self, values: PassValues, sender: int) -> Tensor:
        """A sender's output in coordinates: [P, T, K or D]."""
        if sender == INPUT:
            return values.embedding
        layer, unit = divmod(sender - 1, self.weights.graph.senders_per_layer)
        return values.mlp[layer] if unit == self.weights.graph.heads else values.z[layer][unit]

    def is_head(self, sender: int) -> bool:
        graph = self.weights.graph
        return sender != INPUT and (sender - 1) % graph.senders_per_layer < graph.heads

    def prefix(self, receiver: int) -> Tensor:
        """Keys or values before the window, which never change: [P, start, K]."""
        graph = self.weights.graph
        kind, layer, unit = graph.receiver(receiver)
        source = self.clean.keys if kind == "k" else self.clean.values
        return source[layer][unit * graph.kv_heads // graph.kv_units][:, : self.tokens.start]

    def add_writes(self, x: Tensor, terms: list[tuple[int, Tensor]]) -> Tensor:
        """``x`` plus what senders write, given coordinates [..., P, C, K or D]; x is [..., P, C, D]."""
        heads = [(sender, z) for sender, z in terms if self.is_head(sender)]
        if heads:
            z = torch.cat([z for _, z in heads], -1)
            x = x + matmul(z, torch.cat([self.weights.writes(sender) for sender, _ in heads]))
        for sender, value in terms:
            if not self.is_head(sender):
                x = x + value
        return x
