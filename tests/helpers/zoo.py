"""Random models to run executors on, by name, in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from helpers import random_models as make
from helpers import transformer_lens
from pahq_server.models.architecture import Model
from pahq_server.models.building import cast
from pahq_server.models.loading import load


def _saved(architecture: Callable[..., Any], directory: Path, **changes: Any) -> None:
    architecture(**changes).save_pretrained(directory)


def _of_transformer_lens(directory: Path) -> None:
    """Grouped heads, rotary positions, windows, a parallel gated MLP with biases, bare norms."""
    transformer_lens.read()["much at once"].save(directory)


_SAVERS: dict[str, Callable[[Path], object]] = {
    "gpt2": partial(_saved, make.gpt2),
    "gpt_neo": partial(_saved, make.gpt_neo),
    "gpt_neox": partial(_saved, make.gpt_neox),
    "llama": partial(_saved, make.llama, attention_bias=True, mlp_bias=True),
    "mistral": partial(_saved, make.mistral),
    "qwen2": partial(_saved, make.qwen2),
    "qwen3": partial(_saved, make.qwen3, rms_norm_eps=0.01),
    "opt": partial(_saved, make.opt),
    "hooked": make.save_hooked,
    "hooked bidirectional": partial(
        make.save_hooked, attention_dir="bidirectional", normalization_type="RMS"
    ),
    "hooked attention only": partial(
        make.save_hooked, attn_only=True, normalization_type=None, n_layers=3, d_vocab_out=make.VOCABULARY
    ),
    "hooked, much at once": _of_transformer_lens,
}
NAMES = tuple(_SAVERS)


class Zoo:
    """Builds each model once.

    Args:
        directory: for the checkpoints.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._models: dict[str, Model] = {}

    def __getitem__(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = cast(load(str(self.path(name))).model, torch.float64)
        return self._models[name]

    def path(self, name: str) -> Path:
        """The checkpoint of a model."""
        directory = self._directory / name
        if not directory.exists():
            _SAVERS[name](directory)
        return directory
