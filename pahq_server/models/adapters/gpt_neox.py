"""GPT-NeoX and Pythia: q/k/v fused head by head, partly rotated heads, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import activation, check_rope, rotary, sized, split_out
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint


def architecture(config: Any) -> Architecture:
    check_rope(config)
    d_head = config.hidden_size // config.num_attention_heads
    return sized(
        config,
        d_head,
        d_mlp=config.intermediate_size,
        norm="layer",
        eps=config.layer_norm_eps,
        activation=activation(config.hidden_act),
        parallel=config.use_parallel_residual,
    )


def ends(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    prefix = _prefix(checkpoint)
    embedding = checkpoint.get(f"{prefix}embed_in.weight")
    # The name of the unembedding has changed over time.
    head = "lm_head.weight" if "lm_head.weight" in checkpoint else "embed_out.weight"
    # Imported where it is needed, as all of transformers: 100 MB.
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    return Weights(
        w_e=embedding,
        layers=(),
        norm_w=checkpoint.get(f"{prefix}final_layer_norm.weight"),
        norm_b=checkpoint.get(f"{prefix}final_layer_norm.bias"),
        w_u=(embedding if config.tie_word_embeddings else checkpoint.get(head)).T,
        rotary=rotary(GPTNeoXRotaryEmbedding(config)),
    )


def layer(arch: Architecture, index: int, checkpoint: Checkpoint) -> LayerWeights:
    prefix = f"{_prefix(checkpoint)}layers.{index}."
    heads, d_model, d_head = arch.heads, arch.d_model, arch.d_head
    # Attention has all of its biases or none.
    biased = f"{prefix}attention.dense.bias" in checkpoint

    def get(name: str) -> Tensor:
        return checkpoint.get(prefix + name)

    def bias(name: str, size: int) -> Tensor:
        return get(f"{name}.bias") if biased else torch.zeros(size)

    w_q, w_k, w_v = _by_kind(get("attention.query_key_value.weight").view(heads, 3, d_head, d_model))
    b_q, b_k, b_v = _by_kind(bias("attention.query_key_value", 3 * d_model).view(heads, 3, d_head))
    return LayerWeights(
        w_q=w_q.mT.contiguous(),
        w_k=w_k.mT.contiguous(),
        w_v=w_v.mT.contiguous(),
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        w_o=split_out(get("attention.dense.weight").T, heads),
        b_o=bias("attention.dense", d_model),
        norm1_w=get("input_layernorm.weight"),
        norm1_b=get("input_layernorm.bias"),
        norm2_w=get("post_attention_layernorm.weight"),
        norm2_b=get("post_attention_layernorm.bias"),
        w_in=get("mlp.dense_h_to_4h.weight").T,
        b_in=get("mlp.dense_h_to_4h.bias"),
        w_out=get("mlp.dense_4h_to_h.weight").T,
        b_out=get("mlp.dense_4h_to_h.bias"),
    )


def _by_kind(fused: Tensor) -> tuple[Tensor, ...]:
    """q, k and v, head by head, from a tensor with them in turn within each head: [H, 3, ...]."""
    return tuple(part.contiguous() for part in fused.unbind(1))


def _prefix(checkpoint: Checkpoint) -> str:
    """Checkpoints of the bare model lack the name of the module that is wrapped."""
    return "gpt_neox." if "gpt_neox.embed_in.weight" in checkpoint else ""
