"""Edge scores from gradients a second time: whole prompts under autograd, one edge after another.

Slow and independent of the engine: it shares weights with it and nothing else. Every receiver's input has a
probe of zeros added, and the gradient of the metric with respect to the probe is that with respect to this
input alone, with everything downstream recomputed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from helpers.reference import Pass, Reference
from torch import Tensor

from pahq_server.core.graph import Graph
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Model


@dataclass
class ProbedPass(Pass):
    """A full forward pass of one prompt, in which a probe is added to every receiver's input.

    Args:
        probes: [tokens, d_model] each, by receiver; made of zeros where they are missing.
    """

    probes: dict[str, Tensor] = field(default_factory=dict)

    def _input(self, receiver: str) -> Tensor:
        total = super()._input(receiver)
        if receiver not in self.probes:
            self.probes[receiver] = torch.zeros_like(total, requires_grad=True)
        return total + self.probes[receiver]

    def _attend(self, index: int, t: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        arch = self.model.architecture
        last = t if arch.causal else len(self.ids) - 1
        window = arch.windows[index]
        first = 0 if window is None else max(0, t - window + 1)
        scores = torch.stack([(q[t] * k[s]).sum() for s in range(first, last + 1)])
        shares = (scores * arch.attention_scales[index]).softmax(0)
        return (shares[:, None] * v[first : last + 1]).sum(0)

    def _rotated(self, x: Tensor) -> Tensor:
        rotary = self.model.weights.rotary
        if rotary is None:
            return x
        half = len(rotary.inv_freq)
        angles = torch.arange(len(x))[:, None] * rotary.inv_freq
        cos, sin = angles.cos() * rotary.scaling, angles.sin() * rotary.scaling
        a, b, rest = x[:, :half], x[:, half : 2 * half], x[:, 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], 1)

    def _head_normed(self, x: Tensor, w: Tensor | None) -> Tensor:
        eps = self.model.architecture.eps
        return x if w is None else x / (x.square().mean(1, keepdim=True) + eps).sqrt() * w


class EdgeGradientReference:
    """The scores of all edges of a job whose metric is the logit difference.

    Args:
        model: use float64.
        graph: of that model.
        task: with answers and wrong answers.
        ablation: "resample", "zero" or "mean".
    """

    def __init__(self, model: Model, graph: Graph, task: TokenTask, ablation: str) -> None:
        self._model, self._graph, self._task = model, graph, task
        reference = Reference(model, graph.kv_receivers, task.clean, task.corrupted, ablation)
        clean = [outputs for _, outputs in reference.full]
        self._deltas = [
            {sender: ablated[sender] - outputs[sender] for sender in outputs}
            for ablated, outputs in zip(reference.ablated, clean, strict=True)
        ]

    def scores(self) -> list[float]:
        """By edge, in the graph's order."""
        probes: list[dict[str, Tensor]] = [{} for _ in self._task.clean]
        with torch.enable_grad():
            self._metric(probes).backward()  # type: ignore[no-untyped-call]
        return [self._score(edge, probes) for edge in range(self._graph.num_edges)]

    def slope(self, edge: int, step: float) -> float:
        """The score of an edge by central differences: what the metric does when it is ablated a bit."""
        sender, receiver = self._names(edge)
        with torch.no_grad():
            above, below = (
                self._metric([{receiver: by * deltas[sender]} for deltas in self._deltas]).item()
                for by in (step, -step)
            )
        return (above - below) / (2 * step)

    def _metric(self, probes: Sequence[dict[str, Tensor]]) -> Tensor:
        """Minus the mean logit difference of the full model with probes, per prompt."""
        task, differences = self._task, []
        assert task.answers is not None
        assert task.wrong_answers is not None
        for prompt, ids in enumerate(task.clean):
            logits = ProbedPass(self._model, self._graph.kv_receivers, ids, None, {}, probes[prompt]).run()
            for position in task.positions or (len(ids) - 1,):
                at = logits[position]
                differences.append(at[task.answers[prompt]] - at[task.wrong_answers[prompt]])
        return -torch.stack(differences).mean()

    def _score(self, edge: int, probes: Sequence[Mapping[str, Tensor]]) -> float:
        sender, receiver = self._names(edge)
        total = 0.0
        for deltas, found in zip(self._deltas, probes, strict=True):
            gradient = found[receiver].grad
            assert gradient is not None
            total += float((deltas[sender] * gradient).sum())
        return total

    def _names(self, edge: int) -> tuple[str, str]:
        sender, receiver = self._graph.edge_ends(edge)
        return self._graph.sender_name(sender), self._graph.receiver_name(receiver)
