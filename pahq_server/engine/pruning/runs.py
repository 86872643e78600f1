"""The circuit's run on a part of the prompts, side by side with the ablated one, forward and backward.

The ablated run goes through the layers beside the circuit's own, so that its values are there where gates
read them, and nothing of it outlives a part: it is computed again in each step, and a second time on the way
back. Keeping its values at all sites instead would take about half of what an edge-mask method keeps. On the
way back each layer is computed again from its residual streams, under autograd.

Letters in shapes: P prompts, T positions, C those from the first that differs between the runs, D d_model, W
metric positions of the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pahq_server.core.task import TokenTask
from pahq_server.engine import transformer
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.pruning.gates import LayerGates, ModelGates
from pahq_server.engine.pruning.layers import LayerPass, Sites
from pahq_server.engine.sparse.positions import TokenLayout

# Gives the values that all prompts of a job share at the sites of a layer, of the first so many positions.
SharedSites = Callable[[int, int], Sites]


@dataclass
class _Streams:
    """Residual streams before a layer.

    Args:
        circuits: of each circuit, [P, C, D].
        ablated: of the ablated run, [P, T, D]; None where its values at the sites are known without it.
    """

    circuits: list[Tensor]
    ablated: Tensor | None


class PartRuns:
    """Runs circuits on some neighbouring prompts.

    Args:
        weights: that all runs but the full model's use.
        task: the prompts.
        ablation: ``resample``, ``zero`` or ``mean``.
        shared: the ablated values under ``zero`` and ``mean``; not read under ``resample``.
    """

    def __init__(self, weights: FrozenWeights, task: TokenTask, ablation: str, shared: SharedSites) -> None:
        self._weights, self._ablation, self._shared = weights, ablation, shared
        self.tokens = TokenLayout.of(weights.arch, task, ablation, weights.device)
        rows = torch.arange(self.tokens.prompts, device=weights.device)[:, None]
        self._metric = rows, self.tokens.metric - self.tokens.start

    def finals(self, circuits: Sequence[ModelGates]) -> list[Tensor]:
        """Returns the residual stream of each circuit at the metric positions: [W, D] each."""
        streams = self._embedded(len(circuits))
        for layer in range(self._weights.arch.layers):
            streams = self._after(layer, streams, circuits)
        return [self._at_metric(x) for x in streams.circuits]

    def with_gradients(
        self, gates: ModelGates, gradient_of: Callable[[Tensor], Tensor], total: ModelGates
    ) -> None:
        """Runs one circuit forward and backward.

        Args:
            gates: of the circuit.
            gradient_of: takes the residual stream at the metric positions, [W, D], to the gradient of the
                loss there.
            total: the gradient of the loss at the gates is added to it in place.
        """
        before = [self._embedded(1)]
        for layer in range(self._weights.arch.layers):
            before.append(self._after(layer, before[-1], [gates]))
        final = before.pop().circuits[0]
        d = torch.zeros_like(final).index_put_(
            self._metric,
            gradient_of(self._at_metric(final)).view(*self.tokens.metric.shape, -1),
            accumulate=True,
        )
        del final
        for layer in reversed(range(self._weights.arch.layers)):
            d = self._back(layer, before.pop(), gates, d, total)

    def _embedded(self, circuits: int) -> _Streams:
        tokens = self.tokens
        clean = self._weights.embedded(tokens.clean)[:, tokens.start :]
        ablated = None
        if self._ablation == "resample":
            assert tokens.corrupted is not None
            ablated = self._weights.embedded(tokens.corrupted)
        return _Streams([clean] * circuits, ablated)

    def _after(self, layer: int, streams: _Streams, circuits: Sequence[ModelGates]) -> _Streams:
        """Returns the residual streams after a layer."""
        run = self._layer(layer)
        sites, ablated = self._ablated(layer, run, streams.ablated)
        after: list[Tensor] = []
        for number, (x, gates) in enumerate(zip(streams.circuits, circuits, strict=True)):
            # Circuits that have been the same so far, and are in this layer, have the same stream after it.
            same = (
                earlier
                for earlier in range(number)
                if x is streams.circuits[earlier] and gates.same_layer(circuits[earlier], layer)
            )
            twin = next(same, None)
            after.append(run.gated(x, gates.layer(layer), sites) if twin is None else after[twin])
        return _Streams(after, ablated)

    def _back(self, layer: int, streams: _Streams, gates: ModelGates, d: Tensor, total: ModelGates) -> Tensor:
        """Takes the gradient at the residual stream after a layer to the one before it: [P, C, D] each."""
        run = self._layer(layer)
        sites, _ = self._ablated(layer, run, streams.ablated)
        inputs = [x.detach().requires_grad_() for x in (streams.circuits[0], *gates.layer(layer))]
        with torch.enable_grad():
            x, neurons, hidden, outputs = inputs
            out = run.gated(x, LayerGates(neurons, hidden, outputs), sites)
        before, *of_gates = torch.autograd.grad(out, inputs, d, allow_unused=True, materialize_grads=True)
        for each, found in zip(total.layer(layer), of_gates, strict=True):
            each += found
        return before

    def _ablated(self, layer: int, run: LayerPass, stream: Tensor | None) -> tuple[Sites, Tensor | None]:
        """Returns the ablated values of a layer and, where the ablated run is needed, its stream after it."""
        if stream is None:
            return self._shared(layer, self.tokens.end), None
        after, sites = run.plain(stream)
        return sites, after

    def _layer(self, layer: int, weights: FrozenWeights | None = None) -> LayerPass:
        weights = self._weights if weights is None else weights
        mask = self.tokens.masks[layer].to(weights.dtype)
        return LayerPass(weights.arch, weights.layer(layer), mask, self._rotation)

    @cached_property
    def _rotation(self) -> tuple[Tensor, Tensor] | None:
        if self._weights.rotary is None:
            return None
        positions = torch.arange(self.tokens.end, device=self._weights.device)
        cos, sin = transformer.rotation(self._weights.rotary, positions)
        return cos.to(self._weights.dtype), sin.to(self._weights.dtype)

    def _at_metric(self, x: Tensor) -> Tensor:
        """Selects the metric positions, prompt by prompt: [W, D] of [P, C, D]."""
        return x[self._metric].flatten(0, 1)

    def clean(self, weights: FrozenWeights) -> Iterator[tuple[Sites, Tensor]]:
        """Runs the full model on the clean prompts and yields, layer by layer, its values at the sites.

        Args:
            weights: of the full model.

        Yields the residual stream after each layer at the metric positions, too, [W, D].
        """
        x = weights.embedded(self.tokens.clean)
        for layer in range(weights.arch.layers):
            x, sites = self._layer(layer, weights).plain(x)
            yield sites, self._at_metric(x[:, self.tokens.start :])
