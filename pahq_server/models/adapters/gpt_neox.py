"""GPT-NeoX and Pythia: q/k/v fused head by head, partly rotated heads, attention and MLP in parallel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pahq_server.models.adapters.common import (
    IGNORED,
    ONE_SHAPE,
    SIZES,
    TIED,
    Tensors,
    activation,
    fixed,
    sized,
    split_out,
)
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import EPSILON, FLAG, NAME, SIZE, Fields, number
from pahq_server.models.rope import PARTIAL_ROPE, rotary
from pahq_server.models.tensor_checks import causal_mask, frequencies, masked_score

FIELDS = Fields(
    architectures=("GPTNeoXForCausalLM", "GPTNeoXModel"),
    computed={
        **SIZES,
        "intermediate_size": SIZE,
        "hidden_act": NAME,
        "layer_norm_eps": EPSILON,
        "use_parallel_residual": FLAG,
        "attention_bias": FLAG,
        "rotary_pct": PARTIAL_ROPE.share,
        "rotary_emb_base": number(above=True),
        **PARTIAL_ROPE.computed,
        **TIED,
    },
    fixed=fixed("attention_bias"),
    ignored=IGNORED
    | {"hidden_dropout", "classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"},
    rope=PARTIAL_ROPE,
    multiples={("hidden_size", "num_attention_heads"): ONE_SHAPE},
)
BUFFERS = {
    r"layers\.(\d+)\.attention\.bias": causal_mask,
    r"layers\.(\d+)\.attention\.masked_bias": masked_score,
    r"(?:layers\.(\d+)\.attention\.)?rotary_emb\.inv_freq": frequencies,
}
PREFIX = "gpt_neox."


def architecture(config: Any) -> Architecture:
    return sized(
        config,
        config.hidden_size // config.num_attention_heads,
        d_mlp=config.intermediate_size,
        norm="layer",
        eps=config.layer_norm_eps,
        activation=activation(config.hidden_act),
        parallel=config.use_parallel_residual,
    )


def embeddings(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    tensors = _tensors(checkpoint)
    # The unembedding has had two names.
    embedding, unembedding = tensors.embedding_pair(
        arch, config.tie_word_embeddings, "embed_out.weight", "lm_head.weight"
    )
    # Imported here because transformers takes 100 MB.
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXRotaryEmbedding

    return Weights(
        w_e=embedding,
        layers=(),
        norm_w=tensors.get("final_layer_norm.weight"),
        norm_b=tensors.get("final_layer_norm.bias"),
        w_u=unembedding.T,
        rotary=rotary(GPTNeoXRotaryEmbedding, config, arch.d_head),
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    heads, d_model, d_head = arch.heads, arch.d_model, arch.d_head
    tensors = _tensors(checkpoint)

    def get(name: str, *shape: int) -> Tensor:
        return tensors.get(f"layers.{index}.{name}", *shape)

    def bias(name: str, size: int) -> Tensor:
        return get(f"{name}.bias", size) if config.attention_bias else torch.zeros(size)

    fused = get("attention.query_key_value.weight", 3 * d_model, d_model)
    w_q, w_k, w_v = _by_kind(fused.view(heads, 3, d_head, d_model))
    b_q, b_k, b_v = _by_kind(bias("attention.query_key_value", 3 * d_model).view(heads, 3, d_head))
    return LayerWeights(
        w_q=w_q.mT.contiguous(),
        w_k=w_k.mT.contiguous(),
        w_v=w_v.mT.contiguous(),
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        w_o=split_out(get("attention.dense.weight", d_model, d_model).T, heads),
        b_o=bias("attention.dense", d_model),
        norm1_w=get("input_layernorm.weight"),
        norm1_b=get("input_layernorm.bias"),
        norm2_w=get("post_attention_layernorm.weight"),
        norm2_b=get("post_attention_layernorm.bias"),
        w_in=get("mlp.dense_h_to_4h.weight", arch.d_mlp, d_model).T,
        b_in=get("mlp.dense_h_to_4h.bias"),
        w_out=get("mlp.dense_4h_to_h.weight", d_model, arch.d_mlp).T,
        b_out=get("mlp.dense_4h_to_h.bias"),
    )


def _by_kind(fused: Tensor) -> tuple[Tensor, ...]:
    """Splits a tensor [H, 3, ...], in which each head has its q, k and v, into three of [H, ...]."""
    return tuple(part.contiguous() for part in fused.unbind(1))


def _tensors(checkpoint: Checkpoint) -> Tensors:
    return Tensors(checkpoint, PREFIX, "embed_in.weight")
