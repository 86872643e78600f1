"""Compares a loaded model with transformers' own reading of the same checkpoint.

What an adapter overlooks (a field of the configuration, a tensor, a convention) changes logits by tenths. If
the two readings agree on random prompts, the adapter has read what is in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast, overload

import torch
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.errors import InvalidRequestError
from pahq_server.core.task import TokenIds, TokenTask
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.engine.transformers_model import load_causal_lm
from pahq_server.models.architecture import LayerWeights, Model, Weights
from pahq_server.models.building import to_device
from pahq_server.models.checkpoint_weights import CheckpointWeights
from pahq_server.models.loading import LoadedModel
from pahq_server.models.streaming import ResidentModel

# Lengths of the two prompts; shorter where the model's context is.
LENGTHS = (24, 7)
# Largest allowed difference of a logit, relative to the largest logit or to 1, whichever is more. Both
# readings compute in float32 and differ by about 1e-6 of that.
TOLERANCE = 3e-5
# Largest size of transformers' copy, which is in float32 whatever the file holds, for a test at load.
MOST_BYTES = 2 << 30
# Checkpoints of this format have no other reader among the installed libraries.
WITHOUT_REFERENCE = "hooked_transformer"


@dataclass(frozen=True)
class SelfTest:
    """The outcome of comparing a loaded model with transformers.

    Args:
        difference: largest difference of a logit; None if nothing was compared.
        allowed: the largest difference that counts as equal; None if nothing was compared.
        skipped: why nothing was compared; empty if it was.
    """

    difference: float | None = None
    allowed: float | None = None
    skipped: str = ""

    def __str__(self) -> str:
        if self.skipped:
            return f"not compared with transformers: {self.skipped}"
        return f"logits within {self.difference:.1e} of transformers' on two random prompts"


def self_test(loaded: LoadedModel, room: int) -> SelfTest:
    """Compares logits with those of transformers, at every position of two random prompts.

    Args:
        loaded: the model. Rounded weights are read in full precision.
        room: bytes that transformers' copy may take.

    Raises InvalidRequestError (field ``model``) if logits differ or are not finite.
    """
    arch = loaded.model.architecture
    prompts = random_prompts(arch.vocabulary, arch.context)
    found = literal_logits(loaded, prompts)
    if not all(logits.isfinite().all() for logits in found):
        raise InvalidRequestError("model", "its logits on random prompts are not finite: weights are damaged")
    if arch.model_type == WITHOUT_REFERENCE:
        return SelfTest(
            skipped=f"it does not read {arch.model_type}; fields, tensors and shapes were checked"
        )
    needed = 4 * loaded.model.parameters
    if needed > room:
        wanted = (
            f"its copy would take {needed / 2**30:.1f} GiB, and {max(room, 0) / 2**30:.1f} GiB may be taken"
        )
        return SelfTest(skipped=f"{wanted}; `pahq-server check` compares where there is room")
    expected = transformers_logits(loaded.directory, prompts)
    difference, allowed = 0.0, TOLERANCE
    for ours, theirs in zip(found, expected, strict=True):
        if ours.shape != theirs.shape:
            detail = f"its logits have shape {tuple(ours.shape)}, those of transformers {tuple(theirs.shape)}"
            raise InvalidRequestError("model", detail)
        # max() would ignore NaN.
        difference = float(torch.maximum((ours - theirs).abs().max(), torch.tensor(difference)))
        allowed = max(allowed, TOLERANCE * float(theirs.abs().max()))
    if not difference <= allowed:
        detail = (
            f"its logits differ from those of transformers by {difference:.2g} on a random prompt (at most "
            f"{allowed:.2g} is rounding): it would be served as another model than it is. Please report "
            "config.json and the names of its tensors; --no-self-test serves it all the same"
        )
        raise InvalidRequestError("model", detail)
    return SelfTest(difference, allowed)


def literal_logits(loaded: LoadedModel, prompts: Sequence[TokenIds]) -> list[Tensor]:
    """Computes logits by the literal executor with all edges, with rounded weights in full precision.

    Returns:
        Per prompt [tokens, outputs], float32 on the CPU.
    """
    model = _unrounded(loaded)
    graph = model.architecture.graph("group")
    logits = []
    for ids in prompts:
        task = TokenTask((ids,), positions=tuple(range(len(ids))))
        executor = LiteralExecutor(model, graph, task, "kl_divergence", "zero")
        logits.append(executor.logits(Circuit.full(graph)).float().cpu())
    return logits


def transformers_logits(directory: Path, prompts: Sequence[TokenIds]) -> list[Tensor]:
    """Computes logits by transformers in float32: per prompt [tokens, outputs].

    Raises InvalidRequestError (field ``model``) if transformers does not load the checkpoint, or would make
    up missing weights.
    """
    model = load_causal_lm(directory)
    try:
        with torch.inference_mode():
            return [model(torch.tensor([list(ids)])).logits[0] for ids in prompts]
    except Exception as error:
        raise InvalidRequestError("model", f"transformers does not run it: {error!r}") from error


def random_prompts(vocabulary: int, context: int) -> list[TokenIds]:
    """Returns prompts of `LENGTHS` random tokens, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    lengths = [min(length, context) for length in LENGTHS]
    return [tuple(torch.randint(vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def _unrounded(loaded: LoadedModel) -> Model:
    """Returns the model in full precision, with whole layers."""
    if not isinstance(loaded, ResidentModel):
        return loaded.model
    kept = loaded.model.weights
    weights = SimpleNamespace(
        **{
            name: getattr(kept, name) for name in ("w_e", "w_pos", "w_u", "b_u", "rotary", "norm_w", "norm_b")
        },
        layers=_WholeLayers(loaded.resident.checkpoint, kept.layers, loaded.model.device),
    )
    return Model(loaded.model.architecture, cast(Weights, weights), loaded.model.parameters)


class _WholeLayers(Sequence[LayerWeights]):
    """The layers of a rounded model in full precision; only the layer that was read last is held.

    A slice gives layers with biases and norms only, which is all that is read of several layers at a time.
    """

    def __init__(
        self, checkpoint: CheckpointWeights, small: Sequence[LayerWeights], device: torch.device
    ) -> None:
        self._checkpoint, self._small, self._device = checkpoint, small, device
        self._last: tuple[int, LayerWeights] | None = None

    def __len__(self) -> int:
        return self._checkpoint.layers

    @overload
    def __getitem__(self, index: int) -> LayerWeights: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LayerWeights]: ...
    def __getitem__(self, index: int | slice) -> LayerWeights | Sequence[LayerWeights]:
        if isinstance(index, slice):
            return self._small[index]
        if self._last is None or self._last[0] != index:
            self._last = None  # freed before the next layer is read
            self._last = index, to_device(self._checkpoint.layer(index), self._device)
        return self._last[1]
