"""Inner products of what ablation changes in senders and of gradients at receivers.

Shape suffixes: A tokens, D d_model, H heads, K d_head, S senders, R receivers with equal senders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pahq_server.core.graph import INPUT, Graph
from pahq_server.engine.gradients.activations import whole_layer
from pahq_server.engine.gradients.backward import ReceiverGradients
from pahq_server.engine.sparse.unpatched import ATTENTION_IN, MLP, RunActivations, Z
from pahq_server.models.architecture import Model

# What the vectors of some tokens may take, or, if that is more, what share of the model. Fixed, because sums
# of other parts have other last bits.
CONTRACTION_BYTES = 256 << 20
MODEL_SHARE = 1 / 16
# On CPUs, the vectors of more tokens do not stay in the cache.
CPU_TOKENS = 32


@dataclass
class SenderDifferences:
    """Ablated less clean outputs of all senders, at the tokens that ablation can change.

    Args:
        input: of the embedding, [A, D].
        heads: by layer, those of z, before W_O: [H, A, K].
        mlps: by layer, [A, D]; empty for attention-only models.
    """

    input: Tensor
    heads: list[Tensor]
    mlps: list[Tensor]

    @classmethod
    def of(
        cls, graph: Graph, clean: RunActivations, ablated: RunActivations, tokens: Tensor
    ) -> SenderDifferences:
        """Subtracts two runs at some tokens, given as indices."""

        def difference(layer: int, name: str) -> Tensor:
            return ablated.get(layer, name)[..., tokens, :] - clean.get(layer, name)[..., tokens, :]

        layers = range(graph.layers)
        mlps = [difference(layer, MLP) for layer in layers] if graph.mlps else []
        return cls(difference(0, ATTENTION_IN), [difference(layer, Z) for layer in layers], mlps)


def edge_scores(
    model: Model, graph: Graph, differences: SenderDifferences, gradients: ReceiverGradients
) -> NDArray[np.float64]:
    """Multiplies the differences of all senders with the gradients of all receivers: [edges]."""
    tokens = len(differences.input)
    scores = torch.zeros(graph.num_edges, dtype=torch.float64, device=model.device)
    at_once = _tokens_at_once(model, graph)
    for start in range(0, tokens, at_once):
        _add_scores(scores, model, graph, differences, gradients, slice(start, min(start + at_once, tokens)))
    return scores.cpu().numpy()


def _tokens_at_once(model: Model, graph: Graph) -> int:
    arch, itemsize = model.architecture, model.dtype.itemsize
    room = max(CONTRACTION_BYTES, int(MODEL_SHARE * model.parameters * itemsize))
    fitting = room // ((graph.num_senders + graph.receivers_per_layer) * arch.d_model * itemsize)
    return max(1, min(fitting, CPU_TOKENS) if model.device.type == "cpu" else fitting)


def _add_scores(
    scores: Tensor,
    model: Model,
    graph: Graph,
    differences: SenderDifferences,
    gradients: ReceiverGradients,
    chunk: slice,
) -> None:
    """Adds what some of the tokens contribute to the scores of all edges, layer by layer from below."""
    input_AD = differences.input[chunk]
    delta_SAD = input_AD.new_empty(graph.num_senders, *input_AD.shape)
    g_RAD = input_AD.new_empty(graph.heads + 2 * graph.kv_units, *input_AD.shape)

    def add(receiver: int, g: Tensor) -> None:
        """Adds the scores of edges into neighbouring receivers of one fan-in, from gradients [R, A, D]."""
        senders = graph.upstream(receiver)
        products_RS = _inner(g.flatten(1), delta_SAD[:senders].flatten(1))
        first = graph.edge(INPUT, receiver)
        scores[first : first + products_RS.numel()] += products_RS.flatten()

    delta_SAD[INPUT] = input_AD
    for layer in range(graph.layers):
        weights = whole_layer(model, layer)
        heads_RAK = gradients.heads[layer][:, chunk]
        stacks = (weights.w_q, weights.w_k, weights.w_v)
        counts = (graph.heads, graph.kv_units, graph.kv_units)
        for g, d, w in zip(g_RAD.split(counts), heads_RAK.split(counts), stacks, strict=True):
            # Receivers that share a matrix are neighbours.
            _multiply(d.reshape(len(w), -1, d.shape[-1]), w.transpose(1, 2), g.view(len(w), -1, g.shape[-1]))
        for x_AD, along_RA in gradients.along.get(layer, ()):
            g_RAD.addcmul_(x_AD[chunk], along_RA[:, chunk, None], value=-1)
        add(graph.receiver_of("q", layer), g_RAD)
        head = graph.head(layer, 0)
        _multiply(differences.heads[layer][:, chunk], weights.w_o, delta_SAD[head : head + graph.heads])
        if graph.mlps:
            receiver = graph.receiver_of("mlp", layer)
            add(receiver, gradients.streams[receiver][None, chunk])
            delta_SAD[graph.mlp(layer)] = differences.mlps[layer][chunk]
    add(graph.logits, gradients.streams[graph.logits][None, chunk])


def _multiply(x: Tensor, w: Tensor, out: Tensor) -> None:
    """Writes ``x @ w``, matrix by matrix, into ``out``."""
    torch.bmm(x, w, out=out)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    """Returns ``x @ y.T``, [R, S], for matrices with few rows and many columns."""
    if x.is_cpu and x.dtype == torch.float32:
        # Faster than BLAS, see `precision.products`.
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, y, None, "none", [], "")
        return product
    return x @ y.T
