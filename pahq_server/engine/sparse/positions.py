"""Which token positions and which nodes are needed, how tokens are packed, and attention over them.

Two sets of positions matter:

- the *window*: from the first position where any clean prompt differs from its corrupted one to each prompt's
  last position where the metric is read. Under causal attention and resample ablation nothing before it can
  change; under causal attention nothing after it is needed. Otherwise the window is all of each prompt.
- the *metric positions*: where the metric is read.

Tensors hold the tokens of all prompts of a set one after the other, without padding: [N, d]. Only attention
needs to know which of them belong together: `TokenGrid`.

Shape suffixes: V variants, P prompts, T token positions, C columns of a grid, N packed tokens, K d_head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pahq_server.core.circuit import Circuit
from pahq_server.core.graph import INPUT, Graph
from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.transformer import PromptBatch
from pahq_server.models.architecture import Architecture
from pahq_server.precision.products import matmul_each


class PositionSet(Enum):
    """The positions at which a node is needed."""

    METRIC = "metric"
    WINDOW = "window"


@dataclass(frozen=True, eq=False)
class TokenGrid:
    """Packed tokens as a rectangle of prompts x columns, for attention.

    Args:
        positions: token position in every cell: int64, [P, C].
        real: whether the cell holds a token of the set: bool, [P, C]. Other cells repeat the prompt's last
            token.
    """

    positions: Tensor
    real: Tensor

    @cached_property
    def _packed(self) -> Tensor:
        """Index of the token in every cell: int64, [P * C]."""
        counts = self.real.sum(1)
        columns = torch.arange(self.real.shape[1], device=self.real.device).expand(self.real.shape)
        columns = torch.minimum(columns, counts[:, None] - 1)
        return (columns + (counts.cumsum(0) - counts)[:, None]).flatten()

    @cached_property
    def _full(self) -> bool:
        return bool(self.real.all())

    @cached_property
    def _tokens(self) -> Tensor:
        """Index of the cell of every token: int64, [N]."""
        return self.real.flatten().nonzero()[:, 0]

    def spread(self, x: Tensor) -> Tensor:
        """Lays packed tokens, [..., N, d], out as the rectangle, [..., P, C, d]."""
        x = x if self._full else x[..., self._packed, :]
        return x.view(*x.shape[:-2], *self.real.shape, x.shape[-1])

    def spread_gradient(self, x: Tensor) -> Tensor:
        """Does what `spread` does, but with zeros in the cells that hold no token: nothing reads these."""
        if not self._full:
            cells = x.new_zeros(*x.shape[:-2], self.real.numel(), x.shape[-1])
            cells[..., self._tokens, :] = x
            x = cells
        return x.view(*x.shape[:-2], *self.real.shape, x.shape[-1])

    def pack(self, x: Tensor) -> Tensor:
        """Packs the tokens of the rectangle, [..., P, C, d], without the repeated ones: [..., N, d]."""
        x = x.flatten(-3, -2)
        return x if self._full else x[..., self._tokens, :]


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The prompts of a job, and where in them the window and the metric positions are.

    T is the end of the longest prompt's window.

    Args:
        clean, corrupted: token ids, int64, [P, T]; ``corrupted`` is None if the task has none.
        real: bool, [P, T]: whether there is a token, not padding.
        start: first position of the window.
        ends: per prompt, where its window ends.
        metric: positions where the metric is read, int64, [P, metric positions].
        masks: per layer, the attention mask [P, T, T] (query, key): 0 where visible, -inf where not.
    """

    clean: Tensor
    corrupted: Tensor | None
    real: Tensor
    start: int
    ends: tuple[int, ...]
    metric: Tensor
    masks: tuple[Tensor, ...]
    _masks: dict[tuple[int, PositionSet], Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls, arch: Architecture, task: TokenTask, ablation: str, device: torch.device | str = "cpu"
    ) -> TokenLayout:
        """Lays out the prompts of a task.

        Args:
            arch: of the model.
            task: the prompts.
            ablation: ``resample``, ``zero`` or ``mean``.
            device: of the tensors.
        """
        batch = PromptBatch.of(task)
        metric = batch.metric_position.view(len(task.clean), -1)
        ends = (metric.max(1).values + 1).tolist() if arch.causal else batch.lengths
        end = max(ends)
        start = _first_change(batch) if arch.causal and ablation == "resample" else 0
        masks = {window: _mask(arch, layer, batch, end) for layer, window in enumerate(arch.windows)}
        masks = {window: mask.to(device) for window, mask in masks.items()}
        return cls(
            clean=batch.clean[:, :end].to(device),
            corrupted=None if batch.corrupted is None else batch.corrupted[:, :end].to(device),
            real=batch.real[:, :end].to(device),
            start=min(start, int(metric.min())),
            ends=tuple(ends),
            metric=metric.to(device),
            masks=tuple(masks[window] for window in arch.windows),
        )

    @property
    def prompts(self) -> int:
        """Number of prompts, P."""
        return self.clean.shape[0]

    @property
    def end(self) -> int:
        """Where the longest window ends, T."""
        return self.clean.shape[1]

    @cached_property
    def geometry(self) -> tuple[object, ...]:
        """A key. The attention of jobs with equal keys has the same shapes and masks."""
        return (self.start, self.ends, tuple(self.metric.flatten().tolist()), self.metric.shape)

    def grid(self, position_set: PositionSet) -> TokenGrid:
        """Returns the rectangle of a position set."""
        return self._metric_grid if position_set is PositionSet.METRIC else self._window_grid

    @cached_property
    def _metric_grid(self) -> TokenGrid:
        return TokenGrid(self.metric, torch.ones_like(self.metric, dtype=torch.bool))

    @cached_property
    def _window_grid(self) -> TokenGrid:
        device = self.clean.device
        positions = torch.arange(self.start, self.end, device=device).expand(self.prompts, -1)
        return TokenGrid(positions, positions < torch.tensor(self.ends, device=device)[:, None])

    def count(self, position_set: PositionSet) -> int:
        """Returns the number of packed tokens of a position set, N."""
        return self._counts[position_set]

    @cached_property
    def _counts(self) -> dict[PositionSet, int]:
        return {position_set: int(self.grid(position_set).real.sum()) for position_set in PositionSet}

    def pack(self, x: Tensor) -> Tensor:
        """Packs the window of a tensor over all positions: from [..., P, T, d] to [..., N, d]."""
        return self._window_grid.pack(x[..., self.start :, :])

    @cached_property
    def metric_in_window(self) -> Tensor:
        """Index of every metric position among the packed tokens of the window: int64, [N]."""
        counts = self._window_grid.real.sum(1)
        offsets = counts.cumsum(0) - counts
        return (offsets[:, None] + self.metric - self.start).flatten()

    def narrow(self, x: Tensor, have: PositionSet, want: PositionSet) -> Tensor:
        """Selects the tokens of ``want`` from those of ``have``, [..., N, d], which contains them."""
        if have is want:
            return x
        assert have is PositionSet.WINDOW, "values at the metric positions do not give those of the window"
        return x[..., self.metric_in_window, :]

    def mask_at(self, layer: int, position_set: PositionSet) -> Tensor:
        """Returns the attention mask of the queries of a grid: [P, C, T], 0 or -inf."""
        key = (id(self.masks[layer]), position_set)
        if key not in self._masks:
            rows = torch.arange(self.prompts, device=self.clean.device)[:, None]
            self._masks[key] = self.masks[layer][rows, self.grid(position_set).positions]
        return self._masks[key]

    def positions(self, position_set: PositionSet) -> Tensor:
        """Returns the token position of every packed token: int64, [N]."""
        return self._positions[position_set]

    @cached_property
    def _positions(self) -> dict[PositionSet, Tensor]:
        grids = {position_set: self.grid(position_set) for position_set in PositionSet}
        return {position_set: grid.positions[grid.real] for position_set, grid in grids.items()}


def _first_change(batch: PromptBatch) -> int:
    """Returns the first position at which any clean prompt differs from its corrupted one.

    It is 0 if none does, so that there is a window to compute.
    """
    assert batch.corrupted is not None
    differs = (batch.clean != batch.corrupted).any(0)
    return int(differs.to(torch.int64).argmax())


def _mask(arch: Architecture, layer: int, batch: PromptBatch, end: int) -> Tensor:
    """Returns the mask of a layer up to the position ``end``: 0 or -inf, [P, end, end]."""
    seen = transformer.visible(arch, layer, batch.lengths)[:, :end, :end]
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)


def attend(
    tokens: TokenLayout,
    layer: int,
    position_set: PositionSet,
    qkv: tuple[Tensor, Tensor, Tensor],
    past: Sequence[Tensor] | None,
) -> Tensor:
    """Computes attention of one head, before W_O: [V, N, K].

    Args:
        tokens: the prompts.
        layer: of the head, for its mask.
        position_set: of the queries.
        qkv: queries at these positions, keys and values in the window, [V or 1, N, K] each.
        past: keys and values before the window, [V or 1, P, start, K] each; None if the window starts at 0.
    """
    grid, window = tokens.grid(position_set), tokens.grid(PositionSet.WINDOW)
    q, k, v = grid.spread(qkv[0]), window.spread(qkv[1]), window.spread(qkv[2])
    if past is not None:
        k, v = _after(past[0], k), _after(past[1], v)
    # Broadcast operands would be multiplied by another kernel with other bits than the same values in full.
    # So would a single matrix, which is split among threads: it is computed twice.
    count = max(len(q), len(k), len(v))
    alone = count * q.shape[1] == 1
    q, k, v = (x.expand(2 if alone else count, -1, -1, -1).contiguous() for x in (q, k, v))
    width = v.shape[-1]
    if width % 4:
        # With another width, the bits of a product depend on where its variant stands in the batch.
        q, k, v = (functional.pad(x, (0, -width % 4)) for x in (q, k, v))
    scores = matmul_each(q, k.transpose(-1, -2))
    scores += tokens.mask_at(layer, position_set)
    return grid.pack(matmul_each(scores.softmax(-1), v)[:count, ..., :width])


def _after(past: Tensor, x: Tensor) -> Tensor:
    """Joins keys or values before the window, [V or 1, P, start, K], with those in it, [V or 1, P, C, K]."""
    count = max(len(past), len(x))
    return torch.cat([past.expand(count, -1, -1, -1), x.expand(count, -1, -1, -1)], -2)


# Position sets as numbers, for arrays; 0 stands for a node that is not needed.
POSITION_CODES = {PositionSet.METRIC: 1, PositionSet.WINDOW: 2}


@dataclass(frozen=True)
class LivenessPlan:
    """The live nodes of a circuit, and at which positions each is needed.

    A sender is live if a path of kept edges leads from it to the logits; no other node is ever computed. A
    live node is needed at the metric positions only, unless a key or a value is computed from it.

    Args:
        circuit: whose nodes they are.
        needed: per live sender, where its output is needed.
        receivers: per live receiver, where its input is needed.
    """

    circuit: Circuit
    needed: dict[int, PositionSet]
    receivers: dict[int, PositionSet]

    @classmethod
    def of(cls, circuit: Circuit) -> LivenessPlan:
        """Plans a circuit, from the logits down."""
        graph = circuit.graph
        plan = cls(circuit, {}, {graph.logits: PositionSet.METRIC})
        for layer in reversed(range(graph.layers)):
            if graph.mlps:
                plan._visit(graph.mlp(layer))
            for head in range(graph.heads):
                plan._visit(graph.head(layer, head))
        plan._visit(INPUT)
        return plan

    def _visit(self, sender: int) -> None:
        """Decides whether a sender is live, after all its readers have been decided."""
        first = self.graph.first_receiver(sender)
        readers = np.flatnonzero(self.circuit.kept[self.graph.outgoing(sender)]) + first
        wanted = {self.receivers[r] for r in readers.tolist() if r in self.receivers}
        if wanted:
            self.needed[sender] = PositionSet.WINDOW if PositionSet.WINDOW in wanted else PositionSet.METRIC
            self.receivers.update(self._inputs(sender))

    def _inputs(self, sender: int) -> dict[int, PositionSet]:
        """Returns the receivers that feed a live sender."""
        graph = self.graph
        if sender == INPUT:
            return {}
        layer, unit = divmod(sender - 1, graph.senders_per_layer)
        if unit == graph.heads:
            return {graph.receiver_of("mlp", layer): self.needed[sender]}
        kv = unit * graph.kv_units // graph.heads
        return {
            graph.receiver_of("q", layer, unit): self.needed[sender],
            graph.receiver_of("k", layer, kv): PositionSet.WINDOW,
            graph.receiver_of("v", layer, kv): PositionSet.WINDOW,
        }

    @property
    def graph(self) -> Graph:
        """The graph of the circuit."""
        return self.circuit.graph

    @cached_property
    def sender_codes(self) -> NDArray[np.int8]:
        """Per sender, 0 if it is not live, else its entry of `POSITION_CODES`: int8, [senders]."""
        return _codes(self.needed, self.graph.num_senders)

    @cached_property
    def receiver_codes(self) -> NDArray[np.int8]:
        """Per receiver, 0 if it is not live, else its entry of `POSITION_CODES`: int8, [receivers]."""
        return _codes(self.receivers, self.graph.num_receivers)

    @cached_property
    def kept_heads(self) -> NDArray[np.int64]:
        """Per receiver, how many heads feed it along kept edges: int64, [receivers]."""
        kept = self.circuit.kept & self.graph.head_edges
        # Every receiver has an edge from `input`, so no segment is empty.
        return np.add.reduceat(kept, self.graph.offsets[:-1], dtype=np.int64)

    def heads(self, layer: int) -> list[int]:
        """Returns the live heads of a layer, by number within it."""
        return [h for h in range(self.graph.heads) if self.graph.head(layer, h) in self.needed]

    def __str__(self) -> str:
        """Lists the live nodes of each layer; * marks those that are needed at the metric positions only."""
        lines = []
        for layer in range(self.graph.layers):
            senders = [self.graph.head(layer, h) for h in self.heads(layer)]
            if self.graph.mlps and self.graph.mlp(layer) in self.needed:
                senders.append(self.graph.mlp(layer))
            names = [
                self.graph.sender_name(s) + ("*" if self.needed[s] is PositionSet.METRIC else "")
                for s in senders
            ]
            lines.append(f"layer {layer}: {' '.join(names) or '-'}")
        return "\n".join(lines)


def _codes(needed: dict[int, PositionSet], count: int) -> NDArray[np.int8]:
    codes = np.zeros(count, dtype=np.int8)
    for index, position_set in needed.items():
        codes[index] = POSITION_CODES[position_set]
    return codes
