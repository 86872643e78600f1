"""Bytes of a model's weights: resident, on first use, and while they are loaded."""

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
from pahq_server.models.loading import LoadedModel, outline
from pahq_server.models.masters import Masters
from pahq_server.models.parts import Parts
from pahq_server.models.resident import make_resident
from pahq_server.precision.policy import Format, Policy

_MLP = ("w_in", "b_in", "w_gate", "b_gate", "w_out", "b_out", "norm2_w", "norm2_b")


@dataclass(frozen=True)
class Piece:
    """A piece of a model while it is loaded (see `models.building`).

    Args:
        kept: bytes that stay.
        both: bytes of the piece as it came and as it is kept.
        largest: bytes of the largest tensor among them.
    """

    kept: int
    both: int
    largest: int


class Recording:
    """Does what another `building.Transform` does and notes the pieces' sizes."""

    def __init__(self, inner: Transform) -> None:
        self._inner = inner
        self.pieces: list[Piece] = []

    def architecture(self, arch: Architecture) -> Architecture:
        return self._inner.architecture(arch)

    def ends(self, arch: Architecture, ends: Weights) -> Weights:
        kept = self._inner.ends(arch, ends)
        self._note(ends, kept)
        return kept

    def layer(self, arch: Architecture, index: int, layer: LayerWeights) -> LayerWeights:
        kept = self._inner.layer(arch, index, layer)
        self._note(layer, kept)
        return kept

    def _note(self, plain: object, kept: object) -> None:
        both = storages([plain, kept])
        self.pieces.append(Piece(sum(storages([kept]).values()), sum(both.values()), max(both.values())))


def resident(weights: Weights) -> Parts:
    """What stays in memory of weights."""
    groups: list[list[object]] = [
        [weights.w_e, weights.w_pos, weights.rotary],
        [getattr(layer, name) for layer in weights.layers for name in _MLP],
        [weights.layers],
        [weights.norm_w, weights.norm_b, weights.w_u, weights.b_u],
    ]
    # What has been counted is not counted again: of the layers, attention is left.
    totals = [0] + [sum(storages(chain(*groups[: i + 1])).values()) for i in range(len(groups))]
    embedding, mlps, attention, unembedding = (after - before for before, after in pairwise(totals))
    return Parts(embedding, attention, mlps, unembedding)


def rounded(source: str, policy: Policy) -> Parts:
    """What stays in memory of a model whose weights a policy rounds. Raises as `outline` does."""
    with torch.device("meta"):
        masters = Masters(LoadedModel(outline(source).model, None, ""), lambda: None)
        return make_resident(masters, policy, "meta").nbytes


def copies_bytes(arch: Architecture, parts: Parts, policies: Iterable[Policy]) -> int:
    """The most that rounded copies of a model take, which are made for the first job of each policy.

    Args:
        arch: of the model.
        parts: what the model takes in float32.
        policies: that jobs ask for, besides that of the model.
    """
    matrices = parts.total - parts.embedding
    total = 0
    for policy in policies:
        if policy.operand == "activations":
            total += parts.total  # rounded numbers in float32
        elif policy.heads is Format.BF16:
            total += matrices // 2
        elif policy.heads is not Format.FP32:
            # Numbers of a byte, and a scale of float32 for at least d_head of them.
            total += matrices // 4 + matrices // arch.d_head
    return total


def loading_peak(pieces: Sequence[Piece]) -> int:
    """Most bytes at a time: what is kept so far, one piece twice, and a step between the two."""
    kept = peak = 0
    for piece in pieces:
        peak = max(peak, kept + piece.both + 2 * piece.largest)
        kept += piece.kept
    return peak


def gated_bytes(model: Model) -> int:
    """The copies in which gated MLPs have gate and input side by side, made when a job first uses them."""
    pairs = [(layer.w_gate, layer.w_in) for layer in model.weights.layers]
    return sum(g.nbytes + w.nbytes for g, w in pairs if g is not None and w is not None)


def composed_bytes(arch: Architecture, graph: Graph) -> int:
    """The most that products of weights take which are kept for reuse."""
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
    """Bytes of everything that the tensors in these values keep alive, each piece of memory once."""
    held = [tensor.untyped_storage() for value in values for tensor in _tensors(value)]
    # torch has one object per piece of memory while any reference to it is held.
    return {id(storage): storage.nbytes() for storage in held}


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
