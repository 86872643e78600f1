"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in some layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pahq_server.models.adapters import llama
from pahq_server.models.adapters.common import IGNORED, fixed, windows
from pahq_server.models.adapters.llama import (
    BUFFERS,
    COMPUTED,
    GROUPS,
    PREFIX,
    embeddings,
    layer_with_biases,
)
from pahq_server.models.architecture import Architecture, LayerWeights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import (
    FLAG,
    INT32_MAX,
    NAME,
    SIZE,
    Fields,
    FieldType,
    integer,
    list_of,
    nullable,
)
from pahq_server.models.rope import WHOLE_ROPE

__all__ = ["BUFFERS", "FIELDS", "PREFIX", "architecture", "embeddings", "layer"]

WINDOWS: Mapping[str, FieldType] = {
    "use_sliding_window": FLAG,
    "sliding_window": nullable(SIZE),
    "max_window_layers": integer(0, INT32_MAX),
    "layer_types": nullable(list_of(NAME)),
}
FIELDS = Fields(
    architectures=("Qwen2ForCausalLM", "Qwen2Model"),
    # head_dim must not be null: transformers fills it in only where the field is missing.
    computed={**COMPUTED, "head_dim": SIZE, **WINDOWS},
    fixed={name: values for name, values in fixed(*WINDOWS).items() if name != "attention_bias"},
    ignored=IGNORED,
    multiples=GROUPS,
    rope=WHOLE_ROPE,
)


def architecture(config: Any) -> Architecture:
    return replace(llama.architecture(config), windows=windows(config))


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    return layer_with_biases(arch, index, checkpoint, biased=("q_proj", "k_proj", "v_proj"))
