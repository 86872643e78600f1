"""Which token positions can change, which are needed, and how they are packed.

Two sets of positions matter:

- the *window*: from the first position where any clean prompt differs from its corrupted one to the
  last of each prompt where a metric is read. Under causal attention and resample ablation nothing earlier
  can change; under causal attention nothing later is needed. Without these preconditions it is all of each
  prompt.
- the *metric places*: where the metric is read.

Tensors hold the tokens of all prompts of a set one after the other, without padding: [N, d]. Only
attention needs to know which of them belong together: `Grid`.

Shape suffixes: P prompts, T token positions, C columns of a grid, N packed tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

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


@dataclass(frozen=True, eq=False)
class Grid:
    """Packed tokens as a rectangle of prompts x columns, for attention.

    Args:
        positions: token position of every place: int64, [P, C].
        real: whether the place holds a token of the set: bool, [P, C]. Others repeat the prompt's last one.
    """

    positions: Tensor
    real: Tensor

    @cached_property
    def _packed(self) -> Tensor:
        """Index of the token in every place: int64, [P * C]."""
        counts = self.real.sum(1)
        columns = torch.arange(self.real.shape[1], device=self.real.device).expand(self.real.shape)
        columns = torch.minimum(columns, counts[:, None] - 1)
        return (columns + (counts.cumsum(0) - counts)[:, None]).flatten()

    @cached_property
    def _full(self) -> bool:
        return bool(self.real.all())

    @cached_property
    def _places(self) -> Tensor:
        """Index of the place of every token: int64, [N]."""
        return self.real.flatten().nonzero()[:, 0]

    def spread(self, x: Tensor) -> Tensor:
        """From packed tokens [..., N, d] to the rectangle [..., P, C, d]."""
        x = x if self._full else x[..., self._packed, :]
        return x.view(*x.shape[:-2], *self.real.shape, x.shape[-1])

    def pack(self, x: Tensor) -> Tensor:
        """From the rectangle [..., P, C, d] to packed tokens [..., N, d]."""
        x = x.flatten(-3, -2)
        return x if self._full else x[..., self._places, :]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token geometry of a job. T is the end of the longest prompt's window.

    Args:
        clean, corrupted: int64, shape [P, T].
        real: bool, shape [P, T]: which places hold a token.
        start: first position of the window.
        ends: per prompt, where its window ends.
        metric: int64, shape [P, places]: positions where the metric is read.
        hidden: per layer, float [P, T, T] (query, key): 0 where visible, -inf where not.
    """

    clean: Tensor
    corrupted: Tensor | None
    real: Tensor
    start: int
    ends: tuple[int, ...]
    metric: Tensor
    hidden: tuple[Tensor, ...]
    _masks: dict[tuple[int, Places], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, arch: Architecture, task: TokenTask, ablation: str, device: torch.device | str = "cpu"
    ) -> Tokens:
        batch = PromptBatch.of(task)
        metric = batch.metric_position.view(len(task.clean), -1)
        ends = (metric.max(1).values + 1).tolist() if arch.causal else batch.lengths
        end = max(ends)
        start = _first_change(batch) if arch.causal and ablation == "resample" else 0
        masks = {window: _hidden(arch, layer, batch, end) for layer, window in enumerate(arch.windows)}
        masks = {window: mask.to(device) for window, mask in masks.items()}
        return cls(
            clean=batch.clean[:, :end].to(device),
            corrupted=None if batch.corrupted is None else batch.corrupted[:, :end].to(device),
            real=batch.real[:, :end].to(device),
            start=min(start, int(metric.min())),
            ends=tuple(ends),
            metric=metric.to(device),
            hidden=tuple(masks[window] for window in arch.windows),
        )

    @property
    def prompts(self) -> int:
        return self.clean.shape[0]

    @property
    def end(self) -> int:
        return self.clean.shape[1]

    @cached_property
    def geometry(self) -> tuple[object, ...]:
        """Equal for jobs whose attention has the same shapes and masks."""
        return (self.start, self.ends, tuple(self.metric.flatten().tolist()), self.metric.shape)

    def grid(self, places: Places) -> Grid:
        return self._metric_grid if places is Places.METRIC else self._window_grid

    @cached_property
    def _metric_grid(self) -> Grid:
        return Grid(self.metric, torch.ones_like(self.metric, dtype=torch.bool))

    @cached_property
    def _window_grid(self) -> Grid:
        device = self.clean.device
        positions = torch.arange(self.start, self.end, device=device).expand(self.prompts, -1)
        return Grid(positions, positions < torch.tensor(self.ends, device=device)[:, None])

    def count(self, places: Places) -> int:
        """Packed tokens of a set, N."""
        return self._counts[places]

    @cached_property
    def _counts(self) -> dict[Places, int]:
        return {places: int(self.grid(places).real.sum()) for places in Places}

    def pack(self, x: Tensor) -> Tensor:
        """The window of a tensor over all positions: from [..., P, T, d] to [..., N, d]."""
        return self._window_grid.pack(x[..., self.start :, :])

    @cached_property
    def metric_in_window(self) -> Tensor:
        """Index of every metric place among the packed tokens of the window: int64, [N]."""
        counts = self._window_grid.real.sum(1)
        offsets = counts.cumsum(0) - counts
        return (offsets[:, None] + self.metric - self.start).flatten()

    def narrow(self, x: Tensor, have: Places, want: Places) -> Tensor:
        """From the tokens of one set, [..., N, d], to those of another."""
        if have is want:
            return x
        assert have is Places.WINDOW, "values are kept wherever any reader needs them"
        return x[..., self.metric_in_window, :]

    def hidden_at(self, layer: int, places: Places) -> Tensor:
        """Attention mask of the queries of a grid: [P, C, T], 0 or -inf."""
        key = (id(self.hidden[layer]), places)
        if key not in self._masks:
            rows = torch.arange(self.prompts, device=self.clean.device)[:, None]
            self._masks[key] = self.hidden[layer][rows, self.grid(places).positions]
        return self._masks[key]

    def positions(self, places: Places) -> Tensor:
        """Position of every packed token: int64, [N]."""
        return self._positions[places]

    @cached_property
    def _positions(self) -> dict[Places, Tensor]:
        grids = {places: self.grid(places) for places in Places}
        return {places: grid.positions[grid.real] for places, grid in grids.items()}


def _first_change(batch: PromptBatch) -> int:
    """First position at which any pair differs; 0 where none does, so that a sweep stays testable."""
    assert batch.corrupted is not None
    differs = (batch.clean != batch.corrupted).any(0)
    return int(differs.to(torch.int64).argmax())


def _hidden(arch: Architecture, layer: int, batch: PromptBatch, end: int) -> Tensor:
    seen = ops.visible(arch, layer, batch.lengths)[:, :end, :end]
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
