"""GPT-2: learned positions, fused q/k/v, weights stored input-major (``Conv1D``)."""

from __future__ import annotations

import math
from typing import Any

from pahq_server.models.adapters.common import (
    FIXED,
    IGNORED,
    ONE_SHAPE,
    SUMMARY,
    TIED,
    Tensors,
    activation,
    split_in,
    split_out,
)
from pahq_server.models.architecture import Architecture, LayerWeights, Weights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import EPSILON, FLAG, LAYERS, NAME, SIZE, Fields, nullable
from pahq_server.models.tensor_checks import causal_mask, masked_score

FIELDS = Fields(
    architectures=("GPT2LMHeadModel", "GPT2Model"),
    computed={
        "n_layer": LAYERS,
        "n_head": SIZE,
        "n_embd": SIZE,
        "n_inner": nullable(SIZE),
        "n_positions": SIZE,
        "vocab_size": SIZE,
        "activation_function": NAME,
        "layer_norm_epsilon": EPSILON,
        "scale_attn_weights": FLAG,
        "scale_attn_by_inverse_layer_idx": FLAG,
        **TIED,
    },
    fixed=FIXED,
    ignored=IGNORED
    | SUMMARY
    | {"resid_pdrop", "embd_pdrop", "attn_pdrop"}
    # The order of operations that are exact anyway, and fields that only the first implementations read.
    | {"reorder_and_upcast_attn", "n_ctx", "n_special", "predict_special_tokens"},
    multiples={("n_embd", "n_head"): ONE_SHAPE},
)
BUFFERS = {r"h\.(\d+)\.attn\.bias": causal_mask, r"h\.(\d+)\.attn\.masked_bias": masked_score}
PREFIX = "transformer."


def architecture(config: Any) -> Architecture:
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
        d_mlp=4 * config.n_embd if config.n_inner is None else config.n_inner,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.n_positions,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function),
        attention_scales=tuple(scale / (layer + 1 if by_layer else 1) for layer in range(config.n_layer)),
        windows=(None,) * config.n_layer,
    )


def embeddings(arch: Architecture, config: Any, checkpoint: Checkpoint) -> Weights:
    tensors = _tensors(checkpoint)
    embedding, unembedding = tensors.embedding_pair(arch, config.tie_word_embeddings, "lm_head.weight")
    return Weights(
        w_e=embedding,
        w_pos=tensors.get("wpe.weight"),
        layers=(),
        norm_w=tensors.get("ln_f.weight"),
        norm_b=tensors.get("ln_f.bias"),
        w_u=unembedding.T,
    )


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    tensors, d_model = _tensors(checkpoint), arch.d_model

    def get(name: str, *shape: int) -> Any:
        return tensors.get(f"h.{index}.{name}", *shape)

    w_q, w_k, w_v = get("attn.c_attn.weight", d_model, 3 * d_model).split(d_model, dim=1)
    b_q, b_k, b_v = get("attn.c_attn.bias", 3 * d_model).view(3, arch.heads, arch.d_head)
    return LayerWeights(
        w_q=split_in(w_q, arch.heads),
        w_k=split_in(w_k, arch.heads),
        w_v=split_in(w_v, arch.heads),
        b_q=b_q,
        b_k=b_k,
        b_v=b_v,
        w_o=split_out(get("attn.c_proj.weight", d_model, d_model), arch.heads),
        b_o=get("attn.c_proj.bias"),
        norm1_w=get("ln_1.weight"),
        norm1_b=get("ln_1.bias"),
        norm2_w=get("ln_2.weight"),
        norm2_b=get("ln_2.bias"),
        w_in=get("mlp.c_fc.weight", d_model, arch.d_mlp),
        b_in=get("mlp.c_fc.bias"),
        w_out=get("mlp.c_proj.weight", arch.d_mlp, d_model),
        b_out=get("mlp.c_proj.bias"),
    )


def _tensors(checkpoint: Checkpoint) -> Tensors:
    return Tensors(checkpoint, PREFIX, "wte.weight")
