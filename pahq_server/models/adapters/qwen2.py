"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pahq_server.models.adapters import llama
from pahq_server.models.adapters.common import windows
from pahq_server.models.adapters.llama import ends
from pahq_server.models.architecture import Architecture, LayerWeights
from pahq_server.models.checkpoint import Checkpoint

__all__ = ["architecture", "ends", "layer"]


def architecture(config: Any) -> Architecture:
    return replace(llama.architecture(config), windows=windows(config))


def layer(arch: Architecture, index: int, checkpoint: Checkpoint) -> LayerWeights:
    return llama.layer(arch, index, checkpoint, biased=("q_proj", "k_proj", "v_proj"))
