"""A plain forward pass, layer by layer: where the clean and the corrupted values come from.

Shape suffixes: P prompts, W columns that are computed, T columns that are attended to, D d_model,
K d_head, H heads, G key/value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pahq_server.engine import ops
from pahq_server.engine.sparse.tokens import Tokens
from pahq_server.models.architecture import LayerWeights, Model

# Keys and values of a layer at the columns before those that are computed: [G, P, T - W, K] each.
Past = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerPass:
    """What one layer reads and puts out, at the columns that are computed.

    Args:
        attention_in, mlp_in: the residual stream that the receivers read, [P, W, D].
        z: head outputs before W_O, [H, P, W, K].
        keys, values: [G, P, W, K].
        mlp: MLP output, [P, W, D]; it and ``mlp_in`` are None for attention-only models.
        out: the residual stream after the layer, [P, W, D].
    """

    attention_in: Tensor
    z: Tensor
    keys: Tensor
    values: Tensor
    mlp_in: Tensor | None
    mlp: Tensor | None
    out: Tensor


def run_pass(
    model: Model,
    hidden: Sequence[Tensor],
    token_ids: Tensor,
    past: Callable[[int], Past] | None = None,
    first: int = 0,
) -> Iterator[LayerPass]:
    """The layers of a folded model in order.

    Args:
        model: with folded norms.
        hidden: per layer, 0 where a computed column sees a key and -inf where not: [P, W, T].
        token_ids: padded prompts [P, T].
        past: keys and values of a layer at the columns before ``first``, which are not computed again.
        first: first column to compute.
    """
    arch, weights = model.architecture, model.weights
    positions = torch.arange(first, token_ids.shape[1], device=token_ids.device)
    stream = weights.w_e[token_ids[:, first:]]
    if weights.w_pos is not None:
        stream = stream + weights.w_pos[positions]
    for layer, layer_weights in enumerate(weights.layers):
        before = None if past is None else past(layer)
        z_HPWK, k_GPWK, v_GPWK = _attention(model, layer_weights, stream, hidden[layer], positions, before)
        out = stream + layer_weights.b_o + torch.einsum("hptk,hkd->ptd", z_HPWK, layer_weights.w_o)
        mlp_in = mlp = None
        if arch.d_mlp:
            mlp_in = stream if arch.parallel else out
            mlp = _mlp(model, layer_weights, mlp_in)
            out = out + mlp
        yield LayerPass(stream, z_HPWK, k_GPWK, v_GPWK, mlp_in, mlp, out)
        stream = out


def mean_over_prompts(tokens: Tokens) -> Callable[[Tensor], Tensor]:
    """Replaces every prompt's values by their mean per position, padding excluded: [..., P, T, d]."""
    real_PT1 = tokens.real[..., None]
    count_T1 = real_PT1.sum(0)
    return lambda x: ((x * real_PT1.to(x.dtype)).sum(-3, keepdim=True) / count_T1).expand_as(x)


def _attention(
    model: Model,
    weights: LayerWeights,
    stream: Tensor,
    hidden_PWT: Tensor,
    positions: Tensor,
    past: Past | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arch, rotary = model.architecture, model.weights.rotary
    x_PWD = ops.norm(arch, stream, None, None)

    def project(w: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("ptd,hdk->hptk", x_PWD, w) + b[:, None, None]

    q_HPWK = ops.head_norm(arch, project(weights.w_q, weights.b_q), weights.q_norm)
    k_GPWK = ops.head_norm(arch, project(weights.w_k, weights.b_k), weights.k_norm)
    q_HPWK, k_GPWK = (ops.rotate(rotary, x, positions) for x in (q_HPWK, k_GPWK))
    v_GPWK = project(weights.w_v, weights.b_v)
    k_GPTK, v_GPTK = k_GPWK, v_GPWK
    if past is not None:
        k_GPTK, v_GPTK = torch.cat([past[0], k_GPWK], 2), torch.cat([past[1], v_GPWK], 2)
    k_HPTK, v_HPTK = (x.repeat_interleave(arch.heads // arch.kv_heads, 0) for x in (k_GPTK, v_GPTK))
    scores_HPWT = q_HPWK @ k_HPTK.transpose(-1, -2) + hidden_PWT.to(q_HPWK.dtype)
    return scores_HPWT.softmax(-1) @ v_HPTK, k_GPWK, v_GPWK


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
