"""Llama: RMS norm, rotary positions, gated SiLU MLP, grouped key/value heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import (
    EVEN_GROUPS,
    IGNORED,
    ONE_SHAPE,
    SIZES,
    TIED,
    Tensors,
    activation,
    fixed,
    sized,
    split_in,
    split_out,
)
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import (
    EPSILON,
    FLAG,
    NAME,
    SIZE,
    Fields,
    FieldType,
    check_value,
    list_of,
    nullable,
    one_of,
)
from pahq_server.models.rope import WHOLE_ROPE, rotary
from pahq_server.models.tensor_checks import frequencies

# Fields that Mistral and Qwen have as well.
COMPUTED: Mapping[str, FieldType] = {
    **SIZES,
    "num_key_value_heads": nullable(SIZE),
    "head_dim": nullable(SIZE),
    "intermediate_size": SIZE,
    "hidden_act": NAME,
    "rms_norm_eps": EPSILON,
    **WHOLE_ROPE.computed,
    **TIED,
}
GROUPS = {("num_attention_heads", "num_key_value_heads"): EVEN_GROUPS}
FIELDS = Fields(
    architectures=("LlamaForCausalLM", "LlamaModel"),
    computed={
        **COMPUTED,
        "attention_bias": FLAG,
        "mlp_bias": FLAG,
        "layer_types": list_of(one_of("full_attention")),
    },
    fixed=fixed("attention_bias", "mlp_bias"),
    ignored=IGNORED,
    multiples={("hidden_size", "num_attention_heads"): ONE_SHAPE, **GROUPS},
    rope=WHOLE_ROPE,
)
BUFFERS = {r"(?:layers\.(\d+)\.self_attn\.)?rotary_emb\.inv_freq": frequencies}
PREFIX = "model."


def architecture(config: Any) -> Architecture:
    """Reads the configuration of Llama, or of a model that differs in windows, biases or head norms only."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    check_value("hidden_size // num_attention_heads", d_head, SIZE)
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


def embeddings(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    tensors = _tensors(checkpoint)
    embedding, unembedding = tensors.embedding_pair(arch, config.tie_word_embeddings, "lm_head.weight")
    # Imported here because transformers takes 100 MB.
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return Weights(
        w_e=embedding,
        layers=(),
        norm_w=tensors.get("norm.weight"),
        w_u=unembedding.T,
        rotary=rotary(LlamaRotaryEmbedding, config, arch.d_head),
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    biased: tuple[str, ...] = ()
    if config.attention_bias:
        biased += ("q_proj", "k_proj", "v_proj", "o_proj")
    if config.mlp_bias:
        biased += ("gate_proj", "up_proj", "down_proj")
    return layer_with_biases(arch, index, checkpoint, biased)


def layer_with_biases(
    arch: Architecture, index: int, checkpoint: Checkpoint, biased: Collection[str], head_norms: bool = False
) -> LayerWeights:
    """Reads one layer.

    Args:
        arch: of the model.
        index: of the layer.
        checkpoint: to read.
        biased: names of the projections that have a bias.
        head_norms: whether each head's queries and keys are normed.
    """
    tensors, d_model = _tensors(checkpoint), arch.d_model
    queries, keys = arch.heads * arch.d_head, arch.kv_heads * arch.d_head

    def get(name: str, *shape: int) -> Tensor:
        return tensors.get(f"layers.{index}.{name}", *shape)

    def bias(name: str, *shape: int) -> Tensor:
        if name.rpartition(".")[2] not in biased:
            return torch.zeros(shape)
        return get(f"{name}.bias", torch.Size(shape).numel()).view(shape)

    return LayerWeights(
        w_q=split_in(get("self_attn.q_proj.weight", queries, d_model).T, arch.heads),
        w_k=split_in(get("self_attn.k_proj.weight", keys, d_model).T, arch.kv_heads),
        w_v=split_in(get("self_attn.v_proj.weight", keys, d_model).T, arch.kv_heads),
        b_q=bias("self_attn.q_proj", arch.heads, arch.d_head),
        b_k=bias("self_attn.k_proj", arch.kv_heads, arch.d_head),
        b_v=bias("self_attn.v_proj", arch.kv_heads, arch.d_head),
        w_o=split_out(get("self_attn.o_proj.weight", d_model, queries).T, arch.heads),
        b_o=bias("self_attn.o_proj", d_model),
        q_norm=get("self_attn.q_norm.weight") if head_norms else None,
        k_norm=get("self_attn.k_norm.weight") if head_norms else None,
        norm1_w=get("input_layernorm.weight"),
        norm2_w=get("post_attention_layernorm.weight"),
        w_gate=get("mlp.gate_proj.weight", arch.d_mlp, d_model).T,
        b_gate=bias("mlp.gate_proj", arch.d_mlp),
        w_in=get("mlp.up_proj.weight", arch.d_mlp, d_model).T,
        b_in=bias("mlp.up_proj", arch.d_mlp),
        w_out=get("mlp.down_proj.weight", d_model, arch.d_mlp).T,
        b_out=bias("mlp.down_proj", d_model),
    )


def _tensors(checkpoint: Checkpoint) -> Tensors:
    return Tensors(checkpoint, PREFIX, "embed_tokens.weight")
