"""GPT-Neo: unscaled attention, alternating global and local layers, no q/k/v biases."""

from __future__ import annotations

from typing import Any

import torch

from pahq_server.models.adapters.common import activation, split_in, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint


def architecture(config: Any) -> Architecture:
    windows = tuple(config.window_size if kind == "local" else None for kind in config.attention_layers)
    return Architecture(
        model_type=config.model_type,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_heads,
        d_model=config.hidden_size,
        d_head=config.hidden_size // config.num_heads,
        d_mlp=config.intermediate_size or 4 * config.hidden_size,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function),
        attention_scales=(1.0,) * config.num_layers,
        windows=windows,
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

    no_bias = torch.zeros(arch.heads, arch.d_head)
    return LayerWeights(
        w_q=split_in(get("attn.attention.q_proj.weight").T, arch.heads),
        w_k=split_in(get("attn.attention.k_proj.weight").T, arch.heads),
        w_v=split_in(get("attn.attention.v_proj.weight").T, arch.heads),
        b_q=no_bias,
        b_k=no_bias,
        b_v=no_bias,
        w_o=split_out(get("attn.attention.out_proj.weight").T, arch.heads),
        b_o=get("attn.attention.out_proj.bias"),
        norm1_w=get("ln_1.weight"),
        norm1_b=get("ln_1.bias"),
        norm2_w=get("ln_2.weight"),
        norm2_b=get("ln_2.bias"),
        w_in=get("mlp.c_fc.weight").T,
        b_in=get("mlp.c_fc.bias"),
        w_out=get("mlp.c_proj.weight").T,
        b_out=get("mlp.c_proj.bias"),
    )


def _prefix(checkpoint: Checkpoint) -> str:
    """Published checkpoints come with and without the name of the wrapped module."""
    return "transformer." if "transformer.wte.weight" in checkpoint else ""
