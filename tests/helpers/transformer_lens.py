"""Random models of TransformerLens 2.18 with the logits that it computes, and how they are saved and read.

``generate.py`` in `STORED` made them where TransformerLens is installed; nothing else needs it. Parameters
are drawn from the name of their tensor, so only their shapes are stored. This module needs torch and
safetensors alone: the generator runs in an environment without PAHQ.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

STORED = Path(__file__).parents[1] / "models" / "transformer_lens"
CONTEXT = 16
PROMPTS: tuple[tuple[int, ...], ...] = (
    (4, 0, 22, 9, 9, 1, 13, 7, 20, 2, 17, 5, 11, 3, 8, 21),
    (6,),
    (12, 19, 4, 4, 16, 0, 10, 18, 1),
)


def drawn(name: str, shape: Sequence[int]) -> Tensor:
    """The parameter of that name: uniform in [-.5, .5], around 1 if it is the weight of a norm.

    Of `Random`, unlike torch's generators, the numbers are the same in every version.
    """
    source = Random(name)
    values = torch.tensor([source.random() - 0.5 for _ in range(math.prod(shape))])
    return values.reshape(tuple(shape)) + (1.0 if name.endswith(".w") else 0.0)


@dataclass(frozen=True)
class StoredModel:
    """One model as it came from TransformerLens.

    Args:
        config: ``model.cfg.to_dict()``, with device and dtype as texts.
        parameters: of ``model.state_dict()``.
        buffers: the rest of it.
        logits: of each of `PROMPTS`, [tokens, d_vocab_out].
    """

    config: dict[str, Any]
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    logits: list[Tensor]

    def save(
        self, directory: Path, changes: Mapping[str, Any] | None = None, *, buffers: bool = True
    ) -> None:
        """Saves what a person would: the configuration as JSON, the state dict as safetensors."""
        config = {"model_type": "hooked_transformer"} | self.config | dict(changes or {})
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.json").write_text(json.dumps(config), "utf-8")
        tensors = self.parameters | (self.buffers if buffers else {})
        save_file({name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors")


def write(models: Mapping[str, StoredModel], processed: Sequence[str]) -> None:
    """Stores models. The parameters of the ``processed`` ones are not those that are `drawn`."""
    outlines, tensors = {}, {}
    for key, model in models.items():
        shapes = {name: list(t.shape) for name, t in model.parameters.items()}
        outlines[key] = {"config": model.config, "parameters": shapes, "buffers": sorted(model.buffers)}
        tensors |= {f"{key}/{index}": t.float().contiguous() for index, t in enumerate(model.logits)}
        stored = model.buffers | (model.parameters if key in processed else {})
        tensors |= {f"{key}/{name}": t.clone().contiguous() for name, t in stored.items()}
    lines = [f"{json.dumps(key)}: {json.dumps(outline)}" for key, outline in outlines.items()]
    (STORED / "models.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    save_file(tensors, STORED / "tensors.safetensors")


def read() -> dict[str, StoredModel]:
    """The stored models by name."""
    outlines = json.loads((STORED / "models.json").read_text("utf-8"))
    tensors = load_file(STORED / "tensors.safetensors")

    def parameter(key: str, name: str, shape: list[int]) -> Tensor:
        return tensors[f"{key}/{name}"] if f"{key}/{name}" in tensors else drawn(name, shape)

    return {
        key: StoredModel(
            outline["config"],
            {name: parameter(key, name, shape) for name, shape in outline["parameters"].items()},
            {name: tensors[f"{key}/{name}"] for name in outline["buffers"]},
            [tensors[f"{key}/{index}"] for index in range(len(PROMPTS))],
        )
        for key, outline in outlines.items()
    }
