"""Logits at every position of every prompt: the product's and transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from pahq_server.core.circuit import Circuit
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.models.architecture import Model

Prompts = Sequence[Sequence[int]]


def product_logits(model: Model, prompts: Prompts) -> list[Tensor]:
    """Per prompt [tokens, outputs]: the literal executor's under the full circuit, in one padded batch."""
    tokens = max(map(len, prompts))
    # Positions beyond a short prompt's end are read and thrown away: only the real ones count.
    task = TokenTask(tuple(map(tuple, prompts)), positions=tuple(range(tokens)))
    graph = model.architecture.graph("group")
    executor = LiteralExecutor(model, graph, task, "kl_divergence", "zero")
    logits = executor.logits(Circuit.full(graph)).unflatten(0, (len(prompts), tokens))
    return [rows[: len(ids)] for rows, ids in zip(logits, prompts, strict=True)]


def transformers_logits(directory: Path, prompts: Prompts) -> list[Tensor]:
    """Per prompt [tokens, vocabulary], each prompt by itself, so without any padding."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)])).logits[0] for ids in prompts]


def random_prompts(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def assert_close(
    found: Sequence[Tensor], expected: Sequence[Tensor], atol: float = 1e-4, rtol: float = 0
) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=atol, rtol=rtol)
    assert torch.cat([x.flatten() for x in found]).std() > 0.05  # constants would agree by accident
