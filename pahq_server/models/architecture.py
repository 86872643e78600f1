"""What a transformer computes (`Architecture`) and with which weights (`Weights`).

All executors read models in this form, whatever the checkpoint's format: weights of attention are stacks with
one matrix per head, and all matrices map inputs to outputs as ``x @ w``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pahq_server.core.graph import Graph, KvReceivers

Norm = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


@dataclass(frozen=True)
class Architecture:
    """The sizes and formulas of a decoder (or bidirectional) transformer.

    Args:
        model_type: name of the checkpoint format, for example ``gpt2``.
        layers, heads, d_model, d_head: sizes; ``heads`` per layer.
        kv_heads: heads of keys and values per layer; divides ``heads``.
        d_mlp: hidden units of an MLP; 0 for attention-only models.
        vocabulary, output_vocabulary: number of token ids, and of logits.
        context: longest prompt, in tokens.
        norm: kind of the norms before attention, MLP and unembedding; None for models without.
        eps: added to the variance (layer norm) or mean square (RMS norm).
        activation: of the MLPs.
        attention_scales: per layer, the factor on attention scores.
        windows: per layer, how many keys a query sees including itself; None for all.
        gated: whether the MLP is ``W_out(act(W_gate x) * (W_in x))``.
        causal: whether a position sees only itself and earlier ones.
        parallel: whether attention and MLP of a layer read the same residual stream.
        centred: whether all that is written to the residual stream has the mean 0 over its features, as
            folding leaves models with layer norms.
    """

    model_type: str
    layers: int
    heads: int
    kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    output_vocabulary: int
    context: int
    norm: Norm | None
    eps: float
    activation: Activation
    attention_scales: tuple[float, ...]
    windows: tuple[int | None, ...]
    gated: bool = False
    causal: bool = True
    parallel: bool = False
    centred: bool = False

    def graph(self, kv_receivers: KvReceivers) -> Graph:
        """Returns the model's graph, with key and value receivers per key/value head or per query head."""
        return Graph(
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            kv_receivers=kv_receivers,
            parallel=self.parallel,
            mlps=self.d_mlp > 0,
        )


@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding in the half-split layout (arXiv:2104.09864).

    Args:
        inv_freq: angle per position, float [dims / 2]; the first ``dims`` features of a head are rotated.
        scaling: factor on cosine and sine.
    """

    inv_freq: Tensor
    scaling: float = 1.0


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer, with D d_model, H heads, G key/value heads, K d_head, M d_mlp.

    Tensors that a model does not have are None: norm weights in models without norms, norm biases in RMS
    norms, all of the MLP in attention-only models, the gate in MLPs that are not gated. ``norm1`` comes
    before attention, ``norm2`` before the MLP. ``q_norm`` and ``k_norm`` are RMS norms of each head's queries
    and keys, before rotation.
    """

    w_q: Tensor  # [H, D, K]
    b_q: Tensor  # [H, K]
    w_k: Tensor  # [G, D, K]
    b_k: Tensor  # [G, K]
    w_v: Tensor  # [G, D, K]
    b_v: Tensor  # [G, K]
    w_o: Tensor  # [H, K, D]
    b_o: Tensor  # [D]
    q_norm: Tensor | None = None  # [K]
    k_norm: Tensor | None = None  # [K]
    norm1_w: Tensor | None = None  # [D]
    norm1_b: Tensor | None = None  # [D]
    norm2_w: Tensor | None = None  # [D]
    norm2_b: Tensor | None = None  # [D]
    w_in: Tensor | None = None  # [D, M]
    b_in: Tensor | None = None  # [M]
    w_gate: Tensor | None = None  # [D, M]
    b_gate: Tensor | None = None  # [M]
    w_out: Tensor | None = None  # [M, D]
    b_out: Tensor | None = None  # [D]


@dataclass(frozen=True)
class Weights:
    """All weights of a model, with D d_model, V vocabulary, N context, U output vocabulary.

    While a model is built, the weights outside its layers are a value of this class with no layers.
    """

    w_e: Tensor  # [V, D]
    layers: tuple[LayerWeights, ...]
    w_u: Tensor  # [D, U]
    b_u: Tensor | None = None  # [U]
    w_pos: Tensor | None = None  # [N, D]
    norm_w: Tensor | None = None  # [D]
    norm_b: Tensor | None = None  # [D]
    rotary: Rotary | None = None

    @property
    def copies_ahead(self) -> bool:
        """Whether `read_ahead` has an effect: False, because all weights are in memory on their device."""
        return False

    def read_ahead(self, heads: Iterable[tuple[int, int]]) -> None:
        """Does nothing. `streaming.StreamedWeights` copies the heads, given as (layer, head), ahead."""


@dataclass(frozen=True)
class Model:
    """An architecture with its weights.

    Args:
        architecture: sizes and formulas.
        weights: all of one dtype on one device.
        parameters: how many numbers the checkpoint has; a tied embedding counts once.
    """

    architecture: Architecture
    weights: Weights
    parameters: int = field(default=0)

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.w_e.dtype

    @property
    def device(self) -> torch.device:
        return self.weights.w_e.device
