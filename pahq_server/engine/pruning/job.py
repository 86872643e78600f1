"""A job's prompts under gates: the loss of a circuit with its gradient, and figures of binary circuits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from pahq_server.core.operations import prompt_parts
from pahq_server.core.pruning import Mask, MaskFigures, NodeLayout
from pahq_server.core.task import TokenTask
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.pruning.gates import ModelGates
from pahq_server.engine.pruning.layers import Sites
from pahq_server.engine.pruning.losses import FigureSums, FullModel, LossSums, PartLoss
from pahq_server.engine.pruning.runs import PartRuns
from pahq_server.engine.sparse.memory import PagedTensors
from pahq_server.memory.pool import PagePool
from pahq_server.models.architecture import Architecture

# Tokens of a part of the prompts, padding included: at least the first, more as long as a residual stream has
# no more than so many numbers. A step's memory grows with it; products of fewer rows, and more parts of small
# models, take longer. Fixed, because sums over other parts have other last bits.
LEAST_PART_TOKENS, STREAM_NUMBERS = 64, 64 * 768
# How many masks are measured side by side.
MASKS_AT_ONCE = 16


def layout_of(arch: Architecture) -> NodeLayout:
    """Returns the layout of a model's gates."""
    return NodeLayout(arch.layers, arch.heads, arch.d_head, arch.d_model, arch.d_mlp)


def suitable_part_tokens(arch: Architecture) -> int:
    """Returns how many tokens a part of the prompts should have at most."""
    return max(LEAST_PART_TOKENS, STREAM_NUMBERS // arch.d_model)


class PruningJob:
    """The prompts of a job, run under gates. Whoever makes one releases it.

    What the full model predicts and the means of ``mean`` ablation are computed once, and kept in pages.

    Args:
        full: the model in full precision, whose predictions circuits are compared with.
        weights: that circuits and the ablated run use.
        task: all prompts of the job.
        ablation: ``resample``, ``zero`` or ``mean``.
        pool: of the pages.
        part_tokens: how many tokens a part of the prompts has at most, or one prompt; None for as many
            as suit the model.

    Raises OutOfPagesError if the pool has no room.
    """

    @torch.no_grad()
    def __init__(
        self,
        full: FrozenWeights,
        weights: FrozenWeights,
        task: TokenTask,
        ablation: str,
        pool: PagePool,
        part_tokens: int | None = None,
    ) -> None:
        self.layout = layout_of(weights.arch)
        self.dtype = weights.dtype
        self._weights, self._task, self._ablation = weights, task, ablation
        self._parts = prompt_parts(task, part_tokens or suitable_part_tokens(weights.arch))
        self._positions = len(task.metric_positions())
        self._full, self._means = FullModel(full, pool), PromptMeans(pool)
        try:
            for number, _, runs in self._runs():
                *_, (_, final) = runs.clean(full)
                self._full.put(number, final)
            if ablation == "mean":
                for _, _, runs in self._runs():
                    for layer, (sites, _) in enumerate(runs.clean(weights)):
                        self._means.add(layer, sites, runs.tokens.real)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Frees the pages. May be called again."""
        self._full.release()
        self._means.release()

    @torch.no_grad()
    def loss_with_gradient(self, z: Tensor, task_loss: float = 0.0) -> tuple[LossSums, Tensor]:
        """Runs a circuit forward and backward on all prompts.

        Args:
            z: its gates, in the model's dtype, on any device: [gates].
            task_loss: weight of the mean negative log-probability of the answers in the loss.

        Returns:
            The KL divergence from the full model and the negative log-probability of the answers (0 without
            ``task_loss``), as means over metric positions; and the gradient of their weighted sum at ``z``.
        """
        with torch.enable_grad():
            z = z.detach().to(self._weights.device).requires_grad_()
            products = ModelGates.of(self.layout, z)
        gates = products.detached()
        total = ModelGates(*map(torch.zeros_like, gates))
        sums = LossSums()
        for number, task, runs in self._runs():
            loss = PartLoss(self._weights, self._full, number, task, self._positions, task_loss, sums)
            runs.with_gradients(gates, loss.gradient, total)
        (gradient,) = torch.autograd.grad(tuple(products), z, tuple(total))
        return LossSums(sums.kl / self._positions, sums.answers / self._positions), gradient

    @torch.no_grad()
    def figures(self, masks: Sequence[Mask]) -> list[MaskFigures]:
        """Measures binary circuits, in order. The figures of one do not depend on the others."""
        found: list[MaskFigures] = []
        for first in range(0, len(masks), MASKS_AT_ONCE):
            found += self._figures(masks[first : first + MASKS_AT_ONCE])
        return found

    def _figures(self, masks: Sequence[Mask]) -> list[MaskFigures]:
        weights, sums = self._weights, [FigureSums() for _ in masks]
        circuits = [
            ModelGates.of(self.layout, torch.from_numpy(mask).to(weights.device, weights.dtype))
            for mask in masks
        ]
        for number, task, runs in self._runs():
            for each, final in zip(sums, runs.finals(circuits), strict=True):
                each.add(weights, self._full, number, task, final)
        return [each.figures() for each in sums]

    def _runs(self) -> Iterator[tuple[int, TokenTask, PartRuns]]:
        """Yields the parts of the task: their number, their prompts, and what runs circuits on them."""
        for number, (first, last) in enumerate(self._parts):
            part = self._task.part(slice(first, last))
            yield number, part, PartRuns(self._weights, part, self._ablation, self._shared_sites)

    def _shared_sites(self, layer: int, positions: int) -> Sites:
        """Returns the ablated values of a layer at the first positions, the same for all prompts."""
        return self._means.sites(layer, positions) if self._ablation == "mean" else Sites()


class PromptMeans:
    """Means over prompts, at each position, of values at sites. Padding does not count.

    Args:
        pool: keeps them in its pages.
    """

    def __init__(self, pool: PagePool) -> None:
        self._sums = PagedTensors(pool)

    def add(self, layer: int, sites: Sites, real: Tensor) -> None:
        """Adds the values of some prompts at the sites of a layer.

        Args:
            layer: its index.
            sites: [P, T, n] each.
            real: whether there is a token, bool [P, T].

        Raises OutOfPagesError.
        """
        real = real[..., None]
        for name, x in (("z", sites.z), ("hidden", sites.hidden), ("mlp", sites.mlp)):
            if x is not None:
                self._add(layer, name, (x * real).sum(0))
        self._add(layer, "count", real.sum(0).to(real.device, torch.float64))

    def sites(self, layer: int, positions: int) -> Sites:
        """Returns the means at the first positions: [positions, n] each."""
        count = self._sums.get(layer, "count")[:positions]

        def mean(name: str) -> Tensor | None:
            if not self._sums.has(layer, name):
                return None
            total = self._sums.get(layer, name)[:positions]
            return total / count.to(total.dtype)

        return Sites(mean("z"), mean("hidden"), mean("mlp"))

    def _add(self, layer: int, name: str, x: Tensor) -> None:
        if self._sums.has(layer, name):
            known = self._sums.get(layer, name)
            if len(known) > len(x):
                x = torch.nn.functional.pad(x, (0, 0, 0, len(known) - len(x)))
            x[: len(known)] += known
        self._sums.put(layer, name, x)

    def release(self) -> None:
        """Frees the pages. May be called again."""
        self._sums.release()
