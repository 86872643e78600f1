"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pahq_server.models.adapters import llama
from pahq_server.models.adapters.llama import ends, layer
from pahq_server.models.architecture import Architecture

__all__ = ["architecture", "ends", "layer"]


def architecture(config: Any) -> Architecture:
    plain = llama.architecture(config)
    return replace(plain, windows=(config.sliding_window,) * plain.layers)
