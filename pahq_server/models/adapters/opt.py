"""OPT: learned positions from the third row of their table, biases everywhere, norms before blocks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import activation, refuse, sized, split_in, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint

# Rows of the position table before that of the first position.
_POSITION_OFFSET = 2


def architecture(config: Any) -> Architecture:
    # The 350m model has its norms after the blocks and projects its narrower embeddings up and down.
    refuse(config, do_layer_norm_before=True, _remove_final_layer_norm=False)
    refuse(config, word_embed_proj_dim=config.hidden_size, layer_norm_elementwise_affine=True)
    d_head = config.hidden_size // config.num_attention_heads
    return sized(
        config,
        d_head,
        d_mlp=config.ffn_dim,
        norm="layer",
        eps=1e-5,
        activation=activation(config.activation_function),
    )


def ends(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    prefix = _prefix(checkpoint)
    embedding = checkpoint.get(f"{prefix}embed_tokens.weight")
    positions = checkpoint.get(f"{prefix}embed_positions.weight")
    return Weights(
        w_e=embedding,
        w_pos=positions[_POSITION_OFFSET:].clone(),
        layers=(),
        norm_w=checkpoint.get(f"{prefix}final_layer_norm.weight"),
        norm_b=checkpoint.get(f"{prefix}final_layer_norm.bias"),
        w_u=(embedding if config.tie_word_embeddings else checkpoint.get("lm_head.weight")).T,
    )


def layer(arch: Architecture, index: int, checkpoint: Checkpoint) -> LayerWeights:
    prefix = f"{_prefix(checkpoint)}layers.{index}."
    # A layer has all of its biases or none besides those of its norms.
    biased = f"{prefix}fc1.bias" in checkpoint

    def get(name: str) -> Tensor:
        return checkpoint.get(prefix + name)

    def bias(name: str, *shape: int) -> Tensor:
        return get(f"{name}.bias").view(shape) if biased else torch.zeros(shape)

    return LayerWeights(
        w_q=split_in(get("self_attn.q_proj.weight").T, arch.heads),
        w_k=split_in(get("self_attn.k_proj.weight").T, arch.heads),
        w_v=split_in(get("self_attn.v_proj.weight").T, arch.heads),
        b_q=bias("self_attn.q_proj", arch.heads, arch.d_head),
        b_k=bias("self_attn.k_proj", arch.heads, arch.d_head),
        b_v=bias("self_attn.v_proj", arch.heads, arch.d_head),
        w_o=split_out(get("self_attn.out_proj.weight").T, arch.heads),
        b_o=bias("self_attn.out_proj", arch.d_model),
        norm1_w=get("self_attn_layer_norm.weight"),
        norm1_b=get("self_attn_layer_norm.bias"),
        norm2_w=get("final_layer_norm.weight"),
        norm2_b=get("final_layer_norm.bias"),
        w_in=get("fc1.weight").T,
        b_in=bias("fc1", arch.d_mlp),
        w_out=get("fc2.weight").T,
        b_out=bias("fc2", arch.d_model),
    )


def _prefix(checkpoint: Checkpoint) -> str:
    """Published checkpoints come with and without the name of the wrapped module."""
    return "model.decoder." if "model.decoder.embed_tokens.weight" in checkpoint else "decoder."
