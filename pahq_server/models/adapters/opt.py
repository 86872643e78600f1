"""OPT: learned positions (from the third row of their table), biases everywhere, norms before blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import (
    FIXED,
    IGNORED,
    ONE_SHAPE,
    SIZES,
    TIED,
    Tensors,
    activation,
    refuse,
    sized,
    split_in,
    split_out,
)
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import FLAG, NAME, SIZE, Fields, nullable

# Rows of the position table before the row of position 0.
_POSITION_OFFSET = 2
FIELDS = Fields(
    architectures=("OPTForCausalLM", "OPTModel"),
    computed={
        **SIZES,
        "ffn_dim": SIZE,
        "word_embed_proj_dim": nullable(SIZE),
        "activation_function": NAME,
        "enable_bias": FLAG,
        **TIED,
    },
    # OPT-350m differs: its norms come after the blocks, and its embeddings are narrower than the model.
    fixed={
        **FIXED,
        "do_layer_norm_before": (True,),
        "_remove_final_layer_norm": (False,),
        "layer_norm_elementwise_affine": (True,),
    },
    ignored=IGNORED | {"dropout", "activation_dropout", "layerdrop", "init_std"},
    multiples={("hidden_size", "num_attention_heads"): ONE_SHAPE},
)
BUFFERS: dict[str, Any] = {}
PREFIX = "model."


def architecture(config: Any) -> Architecture:
    refuse(config, word_embed_proj_dim=config.hidden_size)
    return sized(
        config,
        config.hidden_size // config.num_attention_heads,
        d_mlp=config.ffn_dim,
        norm="layer",
        eps=1e-5,
        activation=activation(config.activation_function),
    )


def embeddings(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    tensors = _tensors(checkpoint)
    embedding, unembedding = tensors.embedding_pair(arch, config.tie_word_embeddings, "lm_head.weight")
    positions = tensors.get("decoder.embed_positions.weight")
    return Weights(
        w_e=embedding,
        w_pos=positions[_POSITION_OFFSET:].clone(),
        layers=(),
        norm_w=tensors.get("decoder.final_layer_norm.weight"),
        norm_b=tensors.get("decoder.final_layer_norm.bias"),
        w_u=unembedding.T,
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    tensors, d_model = _tensors(checkpoint), arch.d_model

    def get(name: str, *shape: int) -> Tensor:
        return tensors.get(f"decoder.layers.{index}.{name}", *shape)

    def bias(name: str, *shape: int) -> Tensor:
        if not config.enable_bias:
            return torch.zeros(shape)
        return get(f"{name}.bias", torch.Size(shape).numel()).view(shape)

    return LayerWeights(
        w_q=split_in(get("self_attn.q_proj.weight", d_model, d_model).T, arch.heads),
        w_k=split_in(get("self_attn.k_proj.weight", d_model, d_model).T, arch.heads),
        w_v=split_in(get("self_attn.v_proj.weight", d_model, d_model).T, arch.heads),
        b_q=bias("self_attn.q_proj", arch.heads, arch.d_head),
        b_k=bias("self_attn.k_proj", arch.heads, arch.d_head),
        b_v=bias("self_attn.v_proj", arch.heads, arch.d_head),
        w_o=split_out(get("self_attn.out_proj.weight", d_model, d_model).T, arch.heads),
        b_o=bias("self_attn.out_proj", d_model),
        norm1_w=get("self_attn_layer_norm.weight"),
        norm1_b=get("self_attn_layer_norm.bias"),
        norm2_w=get("final_layer_norm.weight"),
        norm2_b=get("final_layer_norm.bias"),
        w_in=get("fc1.weight", arch.d_mlp, d_model).T,
        b_in=bias("fc1", arch.d_mlp),
        w_out=get("fc2.weight", d_model, arch.d_mlp).T,
        b_out=bias("fc2", d_model),
    )


def _tensors(checkpoint: Checkpoint) -> Tensors:
    return Tensors(checkpoint, PREFIX, "decoder.embed_tokens.weight")
