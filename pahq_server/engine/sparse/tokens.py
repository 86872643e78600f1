"""Which token positions can change, and which are needed.

Two sets of positions matter, both rectangles [P, C] so that tensors stay dense:

- the *window*: from the first position where any clean prompt differs from its corrupted one to the
  last where a metric is read. Under causal attention and resample ablation nothing earlier can change;
  under causal attention nothing later is needed. Without these preconditions it spans the prompts.
- the *metric places*: where the metric is read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from pahq_server.core.task import TokenTask
from pahq_server.engine import ops
from pahq_server.engine.prompts import PromptBatch
from pahq_server.models.architecture import Architecture


class Places(Enum):
    """The positions at which a node is needed."""

    METRIC = "metric"
    WINDOW = "window"


@dataclass(frozen=True)
class Tokens:
    """Token geometry of a job. P prompts, T tokens up to the end of the window.

    Args:
        clean, corrupted: int64, shape [P, T].
        real: bool, shape [P, T]: which places hold a token.
        start: first position of the window; it ends at T.
        metric: int64, shape [P, places]: positions where the metric is read.
        hidden: per layer, float [P, T, T] (query, key): 0 where visible, -inf where not.
    """

    clean: Tensor
    corrupted: Tensor | None
    real: Tensor
    start: int
    metric: Tensor
    hidden: tuple[Tensor, ...]

    @classmethod
    def of(cls, arch: Architecture, task: TokenTask, ablation: str) -> Tokens:
        batch = PromptBatch.of(task)
        metric = batch.metric_position.view(len(task.clean), -1)
        end = int(metric.max()) + 1 if arch.causal else max(batch.lengths)
        start = _first_change(batch) if arch.causal and ablation == "resample" else 0
        masks = {window: _hidden(arch, layer, batch, end) for layer, window in enumerate(arch.windows)}
        return cls(
            clean=batch.clean[:, :end],
            corrupted=None if batch.corrupted is None else batch.corrupted[:, :end],
            real=batch.real[:, :end],
            start=min(start, int(metric.min())),
            metric=metric,
            hidden=tuple(masks[window] for window in arch.windows),
        )

    @property
    def prompts(self) -> int:
        return self.clean.shape[0]

    @property
    def end(self) -> int:
        return self.clean.shape[1]

    def count(self, places: Places) -> int:
        """Positions per prompt."""
        return self.metric.shape[1] if places is Places.METRIC else self.end - self.start

    def take(self, x: Tensor, places: Places) -> Tensor:
        """From all positions [..., P, T, d] to some [..., P, C, d]."""
        if places is Places.WINDOW:
            return x[..., self.start :, :]
        return x[..., torch.arange(self.prompts)[:, None], self.metric, :]

    def narrow(self, x: Tensor, have: Places, want: Places) -> Tensor:
        """From the window [..., P, W, d] to what is wanted."""
        if have is want:
            return x
        assert have is Places.WINDOW, "values are kept wherever any reader needs them"
        return x[..., torch.arange(self.prompts)[:, None], self.metric - self.start, :]

    def hidden_at(self, layer: int, places: Places) -> Tensor:
        """Attention mask of the queries at some places: [P, C, T], 0 or -inf."""
        return self.take(self.hidden[layer], places)

    def positions(self, places: Places) -> Tensor:
        """Position numbers: int64, shape [P, C]."""
        every = torch.arange(self.end).expand(self.prompts, -1)
        return self.take(every[..., None], places)[..., 0]


def _first_change(batch: PromptBatch) -> int:
    """First position at which any pair differs; 0 where none does, so that a sweep stays testable."""
    assert batch.corrupted is not None
    differs = (batch.clean != batch.corrupted).any(0)
    return int(differs.to(torch.int64).argmax())


def _hidden(arch: Architecture, layer: int, batch: PromptBatch, end: int) -> Tensor:
    seen = ops.visible(arch, layer, batch.lengths)[:, :end, :end]
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
