"""Qwen 3: like Qwen 2, with a norm on each head's queries and keys, and biases nowhere or everywhere."""

from __future__ import annotations

from dataclasses import replace

from pahq_server.models.adapters import llama
from pahq_server.models.adapters.llama import ends
from pahq_server.models.adapters.qwen2 import architecture
from pahq_server.models.architecture import Architecture, LayerWeights
from pahq_server.models.checkpoint import Checkpoint

__all__ = ["architecture", "ends", "layer"]


def layer(arch: Architecture, index: int, checkpoint: Checkpoint) -> LayerWeights:
    prefix = f"model.layers.{index}.self_attn."
    return replace(
        llama.layer(arch, index, checkpoint),
        q_norm=checkpoint.get(f"{prefix}q_norm.weight"),
        k_norm=checkpoint.get(f"{prefix}k_norm.weight"),
    )
