"""A part of a job's prompts, and what the full model computes on it.

Shape suffixes: P prompts, C columns (positions of the window), T positions that are attended to, N packed
tokens of the part, W metric positions, D d_model, K d_head, G key/value heads.
"""

from __future__ import annotations

from functools import cached_property, partial

import torch
from torch import Tensor

from pahq_server.engine.sparse.positions import PositionSet, TokenGrid, TokenLayout
from pahq_server.engine.sparse.unpatched import (
    ATTENTION_IN,
    FINAL,
    MLP_IN,
    KeysAndValues,
    RunActivations,
    UnpatchedRuns,
    run_layers,
)
from pahq_server.models.architecture import LayerWeights, Model
from pahq_server.models.streaming import StreamedLayers


class PromptPart:
    """Some neighbouring prompts of a job, in the window of positions that matter (see `sparse.positions`).

    Args:
        tokens: all prompts of the job.
        first, last: prompts from ``first`` until before ``last``.
    """

    def __init__(self, tokens: TokenLayout, first: int, last: int) -> None:
        self._layout, self.prompts, self.start = tokens, slice(first, last), tokens.start
        begin = sum(tokens.ends[:first]) - first * self.start
        self.count = sum(tokens.ends[self.prompts]) - (last - first) * self.start
        self._tokens = slice(begin, begin + self.count)
        self._end = max(tokens.ends[self.prompts])
        whole, columns = tokens.grid(PositionSet.WINDOW), slice(self._end - self.start)
        self.grid = TokenGrid(whole.positions[self.prompts, columns], whole.real[self.prompts, columns])

    def narrow(self, x: Tensor) -> Tensor:
        """Selects the part's tokens from those of the window, [..., N, d]."""
        return x[..., self._tokens, :]

    @cached_property
    def positions(self) -> Tensor:
        """Token position of every packed token: int64, [N]."""
        return self.grid.positions[self.grid.real]

    @cached_property
    def metric_tokens(self) -> Tensor:
        """Index of every metric position among the packed tokens, prompt by prompt: int64, [W]."""
        by_prompt = self._layout.metric_in_window.view(self._layout.prompts, -1)
        return by_prompt[self.prompts].flatten() - self._tokens.start

    def mask(self, layer: int) -> Tensor:
        """Returns the attention mask of a layer: 0 where visible, -inf where not, [P, C, T]."""
        return self._layout.masks[layer][self.prompts, self.start : self._end, : self._end]

    def past(self, unpatched: UnpatchedRuns, layer: int) -> KeysAndValues | None:
        """Returns keys and values before the window: [G, P, start, K] each; None if it starts at 0."""
        if not self.start:
            return None
        keys, values = unpatched.past(layer)
        return keys[:, self.prompts], values[:, self.prompts]

    def ablated_tokens(self, ablation: str, causal: bool) -> Tensor:
        """Returns the tokens at which ablation can change what senders write, as indices: int64.

        Values of clean and corrupted prompts that begin alike are the same until the prompts differ.
        """
        changed = torch.ones_like(self.grid.real)
        if ablation == "resample":
            assert self._layout.corrupted is not None
            window = (self.prompts, slice(self.start, self._end))
            differs = self._layout.clean[window] != self._layout.corrupted[window]
            changed = differs.cumsum(1) > 0 if causal else differs.any(1, keepdim=True).expand_as(differs)
        return changed[self.grid.real].nonzero()[:, 0]


class PartRun:
    """Activations of a run at the tokens of a part, under the names of `RunActivations`."""

    def __init__(self, run: RunActivations, part: PromptPart) -> None:
        self._run, self._part = run, part

    def get(self, layer: int, name: str) -> Tensor:
        return self._part.narrow(self._run.get(layer, name))


class InterpolatedRun:
    """The full model's run on a part, from an embedding between the ablated and the clean one.

    It holds the residual streams only: ``attention_in``, ``mlp_in`` and ``final``.

    Args:
        model: folded.
        unpatched: the job's clean and ablated run.
        part: of the job's prompts.
        clean_share: 0 for the ablated embedding, 1 for the clean one.
    """

    def __init__(self, model: Model, unpatched: UnpatchedRuns, part: PromptPart, clean_share: float) -> None:
        clean, ablated = (
            PartRun(run, part).get(0, ATTENTION_IN) for run in (unpatched.clean, unpatched.ablated)
        )
        stream = part.grid.spread(torch.lerp(ablated, clean, clean_share))
        layers = range(model.architecture.layers)
        # Positions before the window are those of the clean run: there, both embeddings are the same.
        past = partial(part.past, unpatched)
        self._streams: dict[tuple[int, str], Tensor] = {}
        run = run_layers(model, [part.mask(layer) for layer in layers], stream, past, part.start)
        for number, layer in enumerate(run):
            self._streams[number, ATTENTION_IN] = part.grid.pack(layer.attention_in)
            if layer.mlp_in is not None:
                self._streams[number, MLP_IN] = part.grid.pack(layer.mlp_in)
            if number == layers[-1]:
                self._streams[number + 1, FINAL] = part.grid.pack(layer.out)

    def get(self, layer: int, name: str) -> Tensor:
        return self._streams[layer, name]


def whole_layer(model: Model, index: int) -> LayerWeights:
    """Returns the weights of a layer, read from files where they are not in memory."""
    layers = model.weights.layers
    return layers.whole(index) if isinstance(layers, StreamedLayers) else layers[index]
