"""How many bytes a model's weights take: resident, on first use, and while they are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor

from pahq_server.core.graph import INPUT, Graph
from pahq_server.engine.cost import BYTES
from pahq_server.engine.sparse.weights import COMPOSED_BYTES
from pahq_server.models.architecture import Architecture, LayerWeights, Model, Weights
from pahq_server.models.building import Transform
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import map_headers
from pahq_server.models.resident import WeightBytes, make_resident
from pahq_server.precision.policy import Format, Policy
from pahq_server.precision.quantized import Quantized

_MLP = ("w_in", "b_in", "w_gate", "b_gate", "w_out", "b_out", "norm2_w", "norm2_b")


@dataclass(frozen=True)
class Piece:
    """The memory of one piece of a model while it is loaded (see `models.building`).

    Args:
        kept: bytes that stay.
        both: bytes of the piece as it was read and as it is kept, together.
        largest: bytes of the largest tensor among both.
    """

    kept: int
    both: int
    largest: int


class Recording:
    """Applies another `building.Transform` and records the sizes of the pieces."""

    def __init__(self, inner: Transform) -> None:
        self._inner = inner
        self.pieces: list[Piece] = []

    def architecture(self, arch: Architecture) -> Architecture:
        return self._inner.architecture(arch)

    def embeddings(self, arch: Architecture, weights: Weights) -> Weights:
        kept = self._inner.embeddings(arch, weights)
        self._note(weights, kept)
        return kept

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        kept = self._inner.layer(arch, index, layer)
        self._note(layer, kept)
        return kept

    def _note(self, plain: object, kept: object) -> None:
        both = storages([plain, kept])
        self.pieces.append(Piece(sum(storages([kept]).values()), sum(both.values()), max(both.values())))


def resident(weights: Weights) -> WeightBytes:
    """Counts the bytes of weights by part."""
    groups: list[list[object]] = [
        [weights.w_e, weights.w_pos, weights.rotary],
        [getattr(layer, name) for layer in weights.layers for name in _MLP],
        [weights.layers],
        [weights.norm_w, weights.norm_b, weights.w_u, weights.b_u],
    ]
    # A group counts without what earlier groups hold, so of whole layers only attention is left.
    totals = [0] + [sum(storages(chain(*groups[: i + 1])).values()) for i in range(len(groups))]
    embedding, mlps, attention, unembedding = (after - before for before, after in pairwise(totals))
    return WeightBytes(embedding, attention, mlps, unembedding)


def rounded(source: str, policy: Policy) -> WeightBytes:
    """Counts the bytes of a model's weights rounded by a policy. Raises as `loading.outline` does."""
    with torch.device("meta"):
        checkpoint = CheckpointWeights(map_headers(source), lambda: None)
        return make_resident(checkpoint, policy, "meta").nbytes


def copies_bytes(arch: Architecture, parts: WeightBytes, policies: Iterable[Policy]) -> int:
    """Counts the most bytes of rounded copies of a model, which are made for the first job of each policy.

    Args:
        arch: of the model.
        parts: bytes of the model in float32.
        policies: for which jobs may ask.
    """
    matrices = parts.total - parts.embedding
    total = 0
    for policy in policies:
        if policy.operand == "activations":
            total += parts.total  # rounded values are stored as float32
        elif policy.heads is Format.BF16:
            total += matrices // 2
        elif policy.heads is not Format.FP32:
            # One byte per weight, and a float32 scale for every d_head weights or more.
            total += matrices // 4 + matrices // arch.d_head
    return total


def loading_peak(pieces: Sequence[Piece]) -> int:
    """Counts the most bytes at any time: earlier pieces as kept, one piece twice, and temporary tensors."""
    kept = peak = 0
    for piece in pieces:
        peak = max(peak, kept + piece.both + 2 * piece.largest)
        kept += piece.kept
    return peak


def gated_bytes(model: Model) -> int:
    """Counts the bytes of copies with gate and input of gated MLPs side by side, made on first use."""
    pairs = [(layer.w_gate, layer.w_in) for layer in model.weights.layers]
    return sum(g.nbytes + w.nbytes for g, w in pairs if g is not None and w is not None)


def composed_bytes(arch: Architecture, graph: Graph) -> int:
    """Counts the most bytes that products of weights take which are kept for reuse under a graph."""
    width = (2 if arch.gated else 1) * arch.d_mlp
    elements = sum(
        _heads_upstream(graph, r) * arch.d_head * (width if graph.receiver(r).kind == "mlp" else arch.d_head)
        for r in range(graph.logits)
    )
    overlaps = (arch.layers * arch.heads * arch.d_head) ** 2
    return min(COMPOSED_BYTES, BYTES * (elements + overlaps))


def _heads_upstream(graph: Graph, receiver: int) -> int:
    first = int(graph.offsets[receiver])
    edges = graph.head_edges[first : first + graph.upstream(receiver)]
    assert not edges[INPUT]
    return int(edges.sum())


def storages(values: Iterable[object]) -> dict[int, int]:
    """Returns the bytes of each storage that the tensors in some values keep alive, by its id."""
    held = [tensor.untyped_storage() for value in values for tensor in _tensors(value)]
    # torch has one Python object per storage as long as there is a reference to it, so `id` identifies it.
    return {id(storage): storage.nbytes() for storage in held}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Quantized):  # a weight of torchao has no storage of its own
        yield from (value.data, value.scale)
        yield from _tensors(value.inputs)
    elif isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
