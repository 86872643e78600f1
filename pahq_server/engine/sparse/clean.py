"""The clean pass and what senders contribute when they are ablated.

Shape suffixes: L layers, H heads, G kv heads, P prompts, T tokens, D d_model, K d_head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.engine import ops
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.models.architecture import LayerWeights, Model


@dataclass(frozen=True)
class PassValues:
    """Values of one unpatched pass, at all positions.

    Args:
        embedding: output of ``input``, [P, T, D].
        z: per layer, head outputs before W_O, [H, P, T, K].
        mlp: per layer, MLP outputs, [P, T, D]; empty for attention-only models.
        attention_in, mlp_in: per layer, the residual stream that the receivers read, [P, T, D].
        final: the residual stream that ``logits`` reads, [P, T, D].
        keys, values: per layer, [G, P, T, K]; empty where they are not needed.
    """

    embedding: Tensor
    z: list[Tensor]
    mlp: list[Tensor]
    attention_in: list[Tensor]
    mlp_in: list[Tensor]
    final: Tensor
    keys: list[Tensor]
    values: list[Tensor]


def run_pass(model: Model, tokens: Tokens, token_ids: Tensor) -> PassValues:
    """A plain forward pass of a folded model over padded prompts [P, T]."""
    arch, weights = model.architecture, model.weights
    positions = torch.arange(tokens.end)
    stream = weights.w_e[token_ids]
    if weights.w_pos is not None:
        stream = stream + weights.w_pos[positions]
    out = PassValues(stream, [], [], [], [], stream, [], [])
    for layer, layer_weights in enumerate(weights.layers):
        out.attention_in.append(stream)
        z_HPTK, k_GPTK, v_GPTK = _attention(model, layer_weights, stream, tokens.hidden[layer], positions)
        out.z.append(z_HPTK)
        out.keys.append(k_GPTK)
        out.values.append(v_GPTK)
        attended = stream + layer_weights.b_o + torch.einsum("hptk,hkd->ptd", z_HPTK, layer_weights.w_o)
        if arch.d_mlp:
            mlp_in = stream if arch.parallel else attended
            out.mlp_in.append(mlp_in)
            out.mlp.append(_mlp(model, layer_weights, mlp_in))
            attended = attended + out.mlp[-1]
        stream = attended
    return PassValues(**{**vars(out), "final": stream})


def ablated_values(model: Model, tokens: Tokens, clean: PassValues, ablation: str) -> PassValues:
    """What senders contribute along removed edges; the streams are those of the empty circuit."""
    if ablation == "zero":
        return _constants_only(model, clean)
    if ablation == "mean":
        real = tokens.real[..., None].to(model.dtype)

        def mean(x: Tensor) -> Tensor:
            return ((x * real).sum(-3, keepdim=True) / real.sum(0)).expand_as(x)

        return _map(mean, clean)
    assert tokens.corrupted is not None
    return _map(lambda x: x, run_pass(model, tokens, tokens.corrupted))


def _map(function: Callable[[Tensor], Tensor], values: PassValues) -> PassValues:
    """Applies a function to all that belongs to ablated senders; keys and values do not."""
    return PassValues(
        embedding=function(values.embedding),
        z=[function(z) for z in values.z],
        mlp=[function(m) for m in values.mlp],
        attention_in=[function(x) for x in values.attention_in],
        mlp_in=[function(x) for x in values.mlp_in],
        final=function(values.final),
        keys=[],
        values=[],
    )


def _constants_only(model: Model, clean: PassValues) -> PassValues:
    """Zero ablation: all that is left are the attention output biases."""
    zero = torch.zeros_like(clean.final[:1, :1])
    attention_in, mlp_in = [], []
    total = zero
    for layer in model.weights.layers:
        attention_in.append(total.expand_as(clean.final))
        before, total = total, total + layer.b_o
        mlp_in.append((before if model.architecture.parallel else total).expand_as(clean.final))
    return PassValues(
        embedding=zero.expand_as(clean.final),
        z=[zero[..., :1].expand_as(z) for z in clean.z],
        mlp=[zero.expand_as(m) for m in clean.mlp],
        attention_in=attention_in,
        mlp_in=mlp_in,
        final=total.expand_as(clean.final),
        keys=[],
        values=[],
    )


def _attention(
    model: Model, weights: LayerWeights, stream: Tensor, hidden_PTT: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    arch, rotary = model.architecture, model.weights.rotary
    x_PTD = ops.norm(arch, stream, None, None)

    def project(w: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("ptd,hdk->hptk", x_PTD, w) + b[:, None, None]

    q_HPTK = ops.rotate(rotary, project(weights.w_q, weights.b_q), positions)
    k_GPTK = ops.rotate(rotary, project(weights.w_k, weights.b_k), positions)
    v_GPTK = project(weights.w_v, weights.b_v)
    k_HPTK, v_HPTK = (x.repeat_interleave(arch.heads // arch.kv_heads, 0) for x in (k_GPTK, v_GPTK))
    scores_HPTT = q_HPTK @ k_HPTK.transpose(-1, -2) + hidden_PTT.to(q_HPTK.dtype)
    return scores_HPTT.softmax(-1) @ v_HPTK, k_GPTK, v_GPTK


def _mlp(model: Model, weights: LayerWeights, stream: Tensor) -> Tensor:
    assert weights.w_in is not None
    assert weights.b_in is not None
    assert weights.w_out is not None
    assert weights.b_out is not None
    x = ops.norm(model.architecture, stream, None, None)
    activation = ops.ACTIVATIONS[model.architecture.activation]
    up = x @ weights.w_in + weights.b_in
    if weights.w_gate is None:
        hidden = activation(up)
    else:
        assert weights.b_gate is not None
        hidden = activation(x @ weights.w_gate + weights.b_gate) * up
    return hidden @ weights.w_out + weights.b_out
