"""Llama: RMS norm, rotary positions, gated SiLU MLP, grouped key/value heads."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import activation, check_rope, rotary, sized, split_in, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint


def architecture(config: Any) -> Architecture:
    check_rope(config)
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return sized(
        config,
        d_head,
        kv_heads=config.num_key_value_heads,
        d_mlp=config.intermediate_size,
        norm="rms",
        eps=config.rms_norm_eps,
        activation=activation(config.hidden_act),
        gated=True,
    )


def ends(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    embedding = checkpoint.get("model.embed_tokens.weight")
    # Imported where it is needed, as all of transformers: 100 MB.
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return Weights(
        w_e=embedding,
        layers=(),
        norm_w=checkpoint.get("model.norm.weight"),
        w_u=(embedding if config.tie_word_embeddings else checkpoint.get("lm_head.weight")).T,
        rotary=rotary(LlamaRotaryEmbedding(config)),
    )


def layer(
    arch: Architecture, index: int, checkpoint: Checkpoint, biased: Collection[str] = ()
) -> LayerWeights:
    """One layer. Projections in ``biased`` must have a bias; others may."""
    prefix = f"model.layers.{index}."

    def get(name: str) -> Any:
        return checkpoint.get(f"{prefix}{name}.weight")

    def bias(name: str, *shape: int) -> Tensor:
        path = f"{prefix}{name}.bias"
        required = name.rpartition(".")[2] in biased
        found = checkpoint.get(path) if required else checkpoint.find(path)
        return torch.zeros(shape) if found is None else found.view(shape)

    return LayerWeights(
        w_q=split_in(get("self_attn.q_proj").T, arch.heads),
        w_k=split_in(get("self_attn.k_proj").T, arch.kv_heads),
        w_v=split_in(get("self_attn.v_proj").T, arch.kv_heads),
        b_q=bias("self_attn.q_proj", arch.heads, arch.d_head),
        b_k=bias("self_attn.k_proj", arch.kv_heads, arch.d_head),
        b_v=bias("self_attn.v_proj", arch.kv_heads, arch.d_head),
        w_o=split_out(get("self_attn.o_proj").T, arch.heads),
        b_o=bias("self_attn.o_proj", arch.d_model),
        norm1_w=get("input_layernorm"),
        norm2_w=get("post_attention_layernorm"),
        w_gate=get("mlp.gate_proj").T,
        b_gate=bias("mlp.gate_proj", arch.d_mlp),
        w_in=get("mlp.up_proj").T,
        b_in=bias("mlp.up_proj", arch.d_mlp),
        w_out=get("mlp.down_proj").T,
        b_out=bias("mlp.down_proj", arch.d_model),
    )
