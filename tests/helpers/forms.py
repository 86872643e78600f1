"""Checkpoints in other forms than transformers saves them in: right, or refused.

The truth is AutoModelForCausalLM of the same directory, in float32 with eager attention.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from helpers import random_models as make
from helpers.outputs import product_logits, random_prompts
from pahq_server.core.errors import InvalidRequestError
from pahq_server.models.architecture import Model
from pahq_server.models.loading import load, map_files, outline

TYPES = ("gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "opt", "qwen2", "qwen3")
PROMPTS = random_prompts(make.VOCABULARY, (11, 5))


def config_of(directory: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((directory / "config.json").read_text("utf-8"))
    return config


def with_config(source: Path, target: Path, config: Mapping[str, Any]) -> Path:
    """A checkpoint with the weights of another and a configuration of its own."""
    target.mkdir(exist_ok=True)
    weights = target / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(source / "model.safetensors")
    (target / "config.json").write_text(json.dumps(config), "utf-8")
    return target


def expected(directory: Path) -> list[Tensor]:
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
    ).eval()
    with torch.inference_mode():
        return [model(torch.tensor([list(ids)]), return_dict=True).logits[0] for ids in PROMPTS]


def agrees(model: Model, logits: Sequence[Tensor]) -> bool:
    found = product_logits(model, PROMPTS)
    return all(torch.allclose(a, b, atol=1e-4, rtol=0) for a, b in zip(found, logits, strict=True))


def attempt(directory: Path, read: Callable[[str], Any] = load) -> Any:
    """What a reader gives, or the error that it raises."""
    try:
        return read(str(directory))
    except InvalidRequestError as error:
        return error


def right_or_refused(directory: Path) -> str | None:
    """Asserts that all readers give what transformers computes, or refuse in the same words; returns them."""
    loaded = attempt(directory)
    if isinstance(loaded, InvalidRequestError):
        assert loaded.field == "model"
        for read in (outline, map_files):
            refused = attempt(directory, read)
            assert isinstance(refused, InvalidRequestError)
            assert refused.detail == loaded.detail
        return loaded.detail
    assert agrees(loaded.model, expected(directory))
    mapped, _ = map_files(str(directory))
    assert (
        mapped.model.architecture == outline(str(directory)).model.architecture == loaded.model.architecture
    )
    for one, other in zip(_tensors(mapped.model), _tensors(loaded.model), strict=True):
        assert torch.equal(one.as_subclass(Tensor).to(other.dtype), other)
    return None


def _tensors(model: Model) -> list[Tensor]:
    """All weights, in order."""
    found = [vars(model.weights), *map(vars, model.weights.layers)]
    return [value for part in found for value in part.values() if isinstance(value, Tensor)]
