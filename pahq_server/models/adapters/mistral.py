"""Mistral: Llama with a sliding window and without biases."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pahq_server.models.adapters import llama
from pahq_server.models.adapters.common import IGNORED, fixed
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
from pahq_server.models.config_fields import ANYTHING, SIZE, Fields, nullable
from pahq_server.models.rope import WHOLE_ROPE

__all__ = ["BUFFERS", "FIELDS", "PREFIX", "architecture", "embeddings", "layer"]

FIELDS = Fields(
    architectures=("MistralForCausalLM", "MistralModel"),
    # transformers reads a configuration with layer_types as a Ministral, which `loading` then refuses.
    computed={**COMPUTED, "sliding_window": nullable(SIZE), "layer_types": ANYTHING},
    fixed=fixed("sliding_window"),
    ignored=IGNORED,
    multiples=GROUPS,
    rope=WHOLE_ROPE,
)


def architecture(config: Any) -> Architecture:
    plain = llama.architecture(config)
    return replace(plain, windows=(config.sliding_window,) * plain.layers)


def layer(arch: Architecture, config: Any, index: int, checkpoint: Checkpoint) -> LayerWeights:
    return layer_with_biases(arch, index, checkpoint, biased=())
