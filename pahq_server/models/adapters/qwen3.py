"""Qwen 3: like Qwen 2, with a norm on each head's queries and keys, and biases nowhere or everywhere."""

from __future__ import annotations

from typing import Any

from pahq_server.models.adapters.common import IGNORED, fixed
from pahq_server.models.adapters.llama import BUFFERS, COMPUTED, GROUPS, PREFIX, embeddings, layer_with_biases
from pahq_server.models.adapters.qwen2 import WINDOWS, architecture
from pahq_server.models.architecture import Architecture, LayerWeights
from pahq_server.models.checkpoint import Checkpoint
from pahq_server.models.config_fields import FLAG, SIZE, Fields
from pahq_server.models.rope import WHOLE_ROPE

__all__ = ["BUFFERS", "FIELDS", "PREFIX", "architecture", "embeddings", "layer"]

FIELDS = Fields(
    architectures=("Qwen3ForCausalLM", "Qwen3Model"),
    computed={**COMPUTED, "head_dim": SIZE, "attention_bias": FLAG, **WINDOWS},
    fixed=fixed("attention_bias", *WINDOWS),
    ignored=IGNORED,
    multiples=GROUPS,
    rope=WHOLE_ROPE,
)


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    biased = ("q_proj", "k_proj", "v_proj", "o_proj") if config.attention_bias else ()
    return layer_with_biases(arch, index, checkpoint, biased, head_norms=True)
