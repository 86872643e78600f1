"""GPT-Neo: unscaled attention, alternating global and local layers, no q/k/v biases."""

from __future__ import annotations

from typing import Any

import torch

from pahq_server.core.errors import InvalidRequestError
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
from pahq_server.models.config_fields import (
    EPSILON,
    LAYERS,
    MAX_LAYERS,
    NAME,
    SIZE,
    Fields,
    FieldType,
    list_of,
    nullable,
    one_of,
)
from pahq_server.models.tensor_checks import masked_score, window_mask

_KIND_OF_LAYER = one_of("global", "local")


def _repeated(value: object) -> bool:
    """Whether a value is a list of [kinds, times] with no more layers in all than `MAX_LAYERS`."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(x, list | tuple) and len(x) == 2 for x in value
    ):
        return False
    fits = all(LAYERS.accepts(times) and list_of(_KIND_OF_LAYER).accepts(kinds) for kinds, times in value)
    return fits and sum(len(kinds) * times for kinds, times in value) <= MAX_LAYERS


FIELDS = Fields(
    architectures=("GPTNeoForCausalLM", "GPTNeoModel"),
    computed={
        "num_layers": LAYERS,
        "num_heads": SIZE,
        "hidden_size": SIZE,
        "intermediate_size": nullable(SIZE),
        "max_position_embeddings": SIZE,
        "vocab_size": SIZE,
        "window_size": SIZE,
        "attention_types": nullable(
            FieldType(f'[[["global", "local"], times], ...] for at most {MAX_LAYERS} layers', _repeated)
        ),
        "attention_layers": list_of(_KIND_OF_LAYER),
        "activation_function": NAME,
        "layer_norm_epsilon": EPSILON,
        **TIED,
    },
    fixed=FIXED,
    ignored=IGNORED | SUMMARY | {"resid_dropout", "embed_dropout", "classifier_dropout"},
    multiples={("hidden_size", "num_heads"): ONE_SHAPE},
)
BUFFERS = {
    r"h\.(\d+)\.attn\.attention\.bias": window_mask,
    r"h\.(\d+)\.attn\.attention\.masked_bias": masked_score,
}
PREFIX = "transformer."


def architecture(config: Any) -> Architecture:
    d_head = config.hidden_size // config.num_heads
    if len(config.attention_layers) != config.num_layers:
        detail = (
            f"config.json: attention_layers has {len(config.attention_layers)} layers, num_layers is "
            f"{config.num_layers}"
        )
        raise InvalidRequestError("model", detail)
    windows = tuple(config.window_size if kind == "local" else None for kind in config.attention_layers)
    return Architecture(
        model_type=config.model_type,
        layers=config.num_layers,
        heads=config.num_heads,
        kv_heads=config.num_heads,
        d_model=config.hidden_size,
        d_head=d_head,
        d_mlp=4 * config.hidden_size if config.intermediate_size is None else config.intermediate_size,
        vocabulary=config.vocab_size,
        output_vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        norm="layer",
        eps=config.layer_norm_epsilon,
        activation=activation(config.activation_function),
        attention_scales=(1.0,) * config.num_layers,
        windows=windows,
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
    tensors, square = _tensors(checkpoint), (arch.d_model, arch.d_model)

    def get(name: str, *shape: int) -> Any:
        return tensors.get(f"h.{index}.{name}", *shape)

    no_bias = torch.zeros(arch.heads, arch.d_head)
    return LayerWeights(
        w_q=split_in(get("attn.attention.q_proj.weight", *square).T, arch.heads),
        w_k=split_in(get("attn.attention.k_proj.weight", *square).T, arch.heads),
        w_v=split_in(get("attn.attention.v_proj.weight", *square).T, arch.heads),
        b_q=no_bias,
        b_k=no_bias,
        b_v=no_bias,
        w_o=split_out(get("attn.attention.out_proj.weight", *square).T, arch.heads),
        b_o=get("attn.attention.out_proj.bias"),
        norm1_w=get("ln_1.weight"),
        norm1_b=get("ln_1.bias"),
        norm2_w=get("ln_2.weight"),
        norm2_b=get("ln_2.bias"),
        w_in=get("mlp.c_fc.weight", arch.d_mlp, arch.d_model).T,
        b_in=get("mlp.c_fc.bias"),
        w_out=get("mlp.c_proj.weight", arch.d_model, arch.d_mlp).T,
        b_out=get("mlp.c_proj.bias"),
    )


def _tensors(checkpoint: Checkpoint) -> Tensors:
    return Tensors(checkpoint, PREFIX, "wte.weight")
