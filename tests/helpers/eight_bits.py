"""Rounding spelled out, and models that are nearly exact in 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from helpers.random_passes import random_task
from pahq_server.core.circuit import PatchedPass
from pahq_server.core.task import TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.models.architecture import LayerWeights, Model, Weights
from pahq_server.precision.policy import Format
from pahq_server.precision.quantized import quantize

# The receivers of head 1 of layer 0.
PROMOTING = {
    "gpt2": {"a0.h1<q>", "a0.h1<k>", "a0.h1<v>"},
    "llama": {"a0.h1<q>", "a0.g0<k>", "a0.g0<v>"},
}


def nearest(x: Tensor, form: Format, dim: int, terms: int = 1) -> Tensor:
    """Rounded with one scale along a dimension, spelled out."""
    if form is Format.FP32:
        return x
    largest = x.abs().amax(dim, keepdim=True)
    largest = largest.float() if dim == 0 else largest  # scales of weights are float32
    scale = (largest / (127 if form is Format.INT8 else 448)).double()
    scaled = torch.where(scale > 0, x / scale, 0)

    def number(y: Tensor) -> Tensor:
        return y.round() if form is Format.INT8 else y.to(torch.float8_e4m3fn).double()

    first, finer = number(scaled), 254 if form is Format.INT8 else 16
    return (first + number((scaled - first) * finer) / finer if terms == 2 else first) * scale


def bare_norm(x: Tensor, model: Model) -> Tensor:
    """RMS norm without weights."""
    return x / (x.square().mean(-1, keepdim=True) + model.architecture.eps).sqrt()


def all_but_one_head_in_8_bits(model: Model, layer: int, head: int) -> Model:
    """A model whose weights int8 holds exactly, except for those of one head."""

    def snapped(piece: Weights | LayerWeights, *matrices: str) -> dict[str, Tensor | None]:
        found = {name: getattr(piece, name) for name in matrices}
        return {
            n: w if w is None else quantize(w, Format.INT8).data.to(w.dtype) / 512 for n, w in found.items()
        }

    layers = [
        replace(old, **snapped(old, "w_q", "w_k", "w_v", "w_o", "w_in", "w_gate", "w_out"))  # type: ignore[arg-type]
        for old in model.weights.layers
    ]
    group = head * model.architecture.kv_heads // model.architecture.heads
    for name, unit in (("w_q", head), ("w_k", group), ("w_v", group), ("w_o", head)):
        getattr(layers[layer], name)[unit] = getattr(model.weights.layers[layer], name)[unit]
    ends = snapped(model.weights, "w_e", "w_pos", "w_u")
    return replace(model, weights=replace(model.weights, layers=tuple(layers), **ends))  # type: ignore[arg-type]


def assert_prompts_are_independent(
    model: Model, make: Callable[[TokenTask], LiteralExecutor], passes: Sequence[PatchedPass]
) -> None:
    """A score is the mean of the scores of jobs with one prompt each."""
    task = random_task(model)
    assert task.corrupted is not None
    clean, corrupted = task.clean, task.corrupted

    def scores(prompts: slice) -> list[float]:
        return make(replace(task, clean=clean[prompts], corrupted=corrupted[prompts])).score(passes)

    alone = np.mean([scores(slice(i, i + 1)) for i in range(len(clean))], axis=0)
    assert np.allclose(scores(slice(None)), alone, rtol=0, atol=1e-9)
