"""GPT-2: learned positions, fused q/k/v, weights stored input-major (``Conv1D``)."""

from __future__ import annotations

import math
from typing import Any

from pahq_server.models.adapters.common import activation, refuse, split_in, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint


def architecture(config: Any) -> Architecture:
    refuse(config, add_cross_attention=False)
    d_head = config.n_embd // config.n_head
    scale = 1 / math.sqrt(d_head) if config.scale_attn_weights else 1.0
    by_layer = config.scale_attn_by_inverse_layer_idx
    return Architecture(
        model_type=config.model_type,
        layers=config.n_layer,
        heads=config.n_head,
        kv_heads=config.n_head,
        d_model=config.n_embd,
        d_head=d_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.n_positions,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function),
        attention_scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(config.n_layer)),
        windows=(None,) * config.n_layer,
    )


def ends(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    prefix = _prefix(checkpoint)
    embedding = checkpoint.get(f"{prefix}wte.weight")
    return Weights(
        w_e=embedding,
        w_pos=checkpoint.get(f"{prefix}wpe.weight"),
        layers=(),
        norm_w=checkpoint.get(f"{prefix}ln_f.weight"),
        norm_b=checkpoint.get(f"{prefix}ln_f.bias"),
        w_u=(embedding if config.tie_word_embeddings else checkpoint.get("lm_head.weight")).T,
    )


def layer(arch: Architecture, index: int, checkpoint: Checkpoint) -> LayerWeights:
    prefix = f"{_prefix(checkpoint)}h.{index}."

    def get(name: str) -> Any:
        return checkpoint.get(prefix + name)

    w_q, w_k, w_v = get("attn.c_attn.weight").split(arch.d_model, dim=1)
    b_q, b_k, b_v = get("attn.c_attn.bias").view(3, arch.heads, arch.d_head)
    return LayerWeights(
        w_q=split_in(w_q, arch.heads),
        w_k=split_in(w_k, arch.heads),
        w_v=split_in(w_v, arch.heads),
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        w_o=split_out(get("attn.c_proj.weight"), arch.heads),
        b_o=get("attn.c_proj.bias"),
        norm1_w=get("ln_1.weight"),
        norm1_b=get("ln_1.bias"),
        norm2_w=get("ln_2.weight"),
        norm2_b=get("ln_2.bias"),
        w_in=get("mlp.c_fc.weight"),
        b_in=get("mlp.c_fc.bias"),
        w_out=get("mlp.c_proj.weight"),
        b_out=get("mlp.c_proj.bias"),
    )


def _prefix(checkpoint: Checkpoint) -> str:
    """Published checkpoints come with and without the name of the wrapped module."""
    return "transformer." if "transformer.wte.weight" in checkpoint else ""
