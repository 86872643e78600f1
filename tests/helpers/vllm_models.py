"""Random models that vLLM runs on a CPU, with heads that are 32 wide; and what is there to compare with."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from helpers import random_models
from pahq_server.engine.generation.vllm_backend import DISTRIBUTIONS
from pahq_server.models.loading import LoadedModel, load

VOCABULARY = 97
CONTEXT = 128
END = 5


def _installed() -> bool:
    for distribution in DISTRIBUTIONS:
        try:
            version(distribution)
        except PackageNotFoundError:
            continue
        return True
    return False


needs_vllm = pytest.mark.skipif(not _installed(), reason="vLLM is not installed: make test-vllm installs it")


def llama(directory: Path) -> LoadedModel:
    """A random Llama: grouped heads, gated MLPs, and an end token that comes now and then."""
    model = random_models.llama(
        hidden_size=128,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=192,
        vocab_size=VOCABULARY,
        max_position_embeddings=CONTEXT,
        eos_token_id=END,
    )
    with torch.no_grad():
        model.lm_head.weight *= 0.3
    model.save_pretrained(directory)
    return load(str(directory))
