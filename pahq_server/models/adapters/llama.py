"""Llama: RMS norm, rotary positions, gated SiLU MLP, grouped key/value heads."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.adapters.common import activation, split_in, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Rotary, Weights
from pahq_server.models.checkpoint import Checkpoint

# Rotary variants whose frequencies do not depend on the length of the prompt.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


def architecture(config: Any) -> Architecture:
    rope = config.rope_parameters["rope_type"]
    if rope not in _STATIC_ROPE:
        raise InvalidRequestError(
            "model", f"llama with rope_type={rope!r} is not supported, only {_STATIC_ROPE}"
        )
    return Architecture(
        model_type=config.model_type,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        d_model=config.hidden_size,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        norm="rms",
        eps=config.rms_norm_eps,
        activation=activation(config.hidden_act),
        gated=True,
        attention_scales=(1 / math.sqrt(config.head_dim),) * config.num_hidden_layers,
        windows=(None,) * config.num_hidden_layers,
    )


def weights(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    embedding = checkpoint.get("model.embed_tokens.weight")
    rotary = LlamaRotaryEmbedding(config)
    return Weights(
        w_e=embedding,
        layers=tuple(_layer(arch, f"model.layers.{layer}.", checkpoint) for layer in range(arch.layers)),
        norm_w=checkpoint.get("model.norm.weight"),
        w_u=(embedding if config.tie_word_embeddings else checkpoint.get("lm_head.weight")).T,
        rotary=Rotary(rotary.inv_freq.float(), float(rotary.attention_scaling)),
    )


def _layer(arch: Architecture, prefix: str, checkpoint: Checkpoint) -> LayerWeights:
    def get(name: str) -> Any:
        return checkpoint.get(f"{prefix}{name}.weight")

    def bias(name: str, *shape: int) -> Tensor:
        found = checkpoint.find(f"{prefix}{name}.bias")
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
