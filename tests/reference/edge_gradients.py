"""Edge scores from gradients a second time: whole prompts under autograd, one edge after another.

Slow and independent of the engine: it shares weights with it and nothing else. Every receiver's input has a
probe of zeros added, and the gradient of the metric with respect to the probe is that with respect to this
input alone, with everything downstream recomputed. Where a rule departs from differentiation, the operation
is a function of autograd with a backward pass of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from helpers.reference import Pass, Reference
from torch import Tensor

from pahq_server.core.graph import Graph
from pahq_server.core.operations import CLEAN_RUN, EXACT, BackwardRule, GradientPoint
from pahq_server.core.task import TokenTask
from pahq_server.models.architecture import Model


class ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return x.clone()

    @staticmethod
    def backward(context: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return d * context.factor, None


class RelevanceActivation(torch.autograd.Function):
    """An activation function, whose slope counts as its value divided by its argument."""

    @staticmethod
    def forward(context: Any, x: Tensor, value: Tensor) -> Tensor:
        context.save_for_backward(x, value)
        return value.clone()

    @staticmethod
    def backward(context: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        x, value = context.saved_tensors
        sign = torch.sign(x)
        sign[sign == 0] = 1
        return d * value / (x + 1e-6 * sign), None


class TemperedSoftmax(torch.autograd.Function):
    """The softmax of a vector, with the Jacobian diag(p) - p p^T of p = softmax(scores / temperature)."""

    @staticmethod
    def forward(context: Any, scores: Tensor, temperature: float) -> Tensor:
        p = (scores / temperature).softmax(0)
        context.save_for_backward(torch.diag(p) - torch.outer(p, p))
        return scores.softmax(0)

    @staticmethod
    def backward(context: Any, d: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (jacobian,) = context.saved_tensors
        return jacobian @ d, None


@dataclass
class ProbedPass(Pass):
    """A full forward pass of one prompt, in which a probe is added to every receiver's input.

    Args:
        probes: [tokens, d_model] each, by receiver; made of zeros where they are missing.
        rule: of the backward pass.
        embedded: what ``input`` puts out, [tokens, d_model]; None for the prompt's embedding.
    """

    probes: dict[str, Tensor] = field(default_factory=dict)
    rule: BackwardRule = EXACT
    embedded: Tensor | None = None

    def _embedded(self) -> Tensor:
        return super()._embedded() if self.embedded is None else self.embedded

    def _input(self, receiver: str) -> Tensor:
        total = super()._input(receiver)
        if receiver not in self.probes:
            self.probes[receiver] = torch.zeros_like(total, requires_grad=True)
        return total + self.probes[receiver]

    def _attend(self, index: int, t: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        arch, rule = self.model.architecture, self.rule
        q, k = (ScaledGradient.apply(x, rule.qk_factor) for x in (q, k))
        v = ScaledGradient.apply(v, rule.v_factor)
        last = t if arch.causal else len(self.ids) - 1
        window = arch.windows[index]
        first = 0 if window is None else max(0, t - window + 1)
        scores = torch.stack([(q[t] * k[s]).sum() for s in range(first, last + 1)])
        shares = TemperedSoftmax.apply(scores * arch.attention_scales[index], rule.softmax_temperature)
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

    def _normed(self, x: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
        arch = self.model.architecture
        if arch.norm is None:
            return x
        if arch.norm == "layer":
            x = x - x.mean(-1, keepdim=True)
        x = self._scaled(x)
        x = x if w is None else x * w
        return x if b is None else x + b

    def _head_normed(self, x: Tensor, w: Tensor | None) -> Tensor:
        return x if w is None else self._scaled(x) * w

    def _scaled(self, x: Tensor) -> Tensor:
        scale = (x.square().mean(-1, keepdim=True) + self.model.architecture.eps).sqrt()
        return x / (scale.detach() if self.rule.norm_scale_constant else scale)

    def _activation(self, x: Tensor) -> Tensor:
        # The slope of torch's ReLU at 0 is 0, that of its clamp is 1.
        value = x.relu() if self.model.architecture.activation == "relu" else super()._activation(x)
        return value if self.rule.activation == "exact" else RelevanceActivation.apply(x, value)

    def _gated(self, gate: Tensor, hidden: Tensor) -> Tensor:
        factor = self.rule.gated_product_factor
        return ScaledGradient.apply(gate, factor) * ScaledGradient.apply(hidden, factor)


class EdgeGradientReference:
    """The scores of all edges of a job.

    Args:
        model: use float64.
        graph: of that model.
        task: with answers and wrong answers if the metric reads them.
        ablation: "resample", "zero" or "mean".
        metric: its name.
        rule: of the backward pass.
        points: where gradients are taken.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        task: TokenTask,
        ablation: str,
        metric: str = "logit_difference",
        rule: BackwardRule = EXACT,
        points: Sequence[GradientPoint] = CLEAN_RUN,
    ) -> None:
        self._model, self._graph, self._task = model, graph, task
        self._metric, self._rule, self._points = metric, rule, points
        reference = Reference(model, graph.kv_receivers, task.clean, task.corrupted, ablation)
        self._full_logits, self._ablated = reference.full_logits, reference.ablated
        self._clean = [outputs for _, outputs in reference.full]
        self._deltas = [
            {sender: ablated[sender] - outputs[sender] for sender in outputs}
            for ablated, outputs in zip(reference.ablated, self._clean, strict=True)
        ]

    def scores(self) -> list[float]:
        """By edge, in the graph's order."""
        gradients: list[dict[str, Tensor]] = [{} for _ in self._task.clean]
        for point in self._points:
            probes: list[dict[str, Tensor]] = [{} for _ in self._task.clean]
            with torch.enable_grad():
                self._value(probes, point.clean_share).backward()  # type: ignore[no-untyped-call]
            for mean, found in zip(gradients, probes, strict=True):
                for receiver, probe in found.items():
                    assert probe.grad is not None
                    mean[receiver] = mean.get(receiver, torch.zeros(())) + point.weight * probe.grad
        return [self._score(edge, gradients) for edge in range(self._graph.num_edges)]

    def slope(self, edge: int, step: float) -> float:
        """The score of an edge by central differences: what the metric does when it is ablated a bit."""
        sender, receiver = self._names(edge)
        with torch.no_grad():
            above, below = (
                self._value([{receiver: by * deltas[sender]} for deltas in self._deltas]).item()
                for by in (step, -step)
            )
        return (above - below) / (2 * step)

    def _value(self, probes: Sequence[dict[str, Tensor]], clean_share: float = 1.0) -> Tensor:
        """The full model's metric with probes, from an embedding between the ablated and the clean one."""
        values = []
        for prompt, ids in enumerate(self._task.clean):
            clean, ablated = self._clean[prompt]["input"], self._ablated[prompt]["input"]
            run = ProbedPass(self._model, self._graph.kv_receivers, ids, None, {}, probes[prompt], self._rule)
            if clean_share != 1:
                run.embedded = ablated + clean_share * (clean - ablated)
            logits = run.run()
            for position in self._task.positions or (len(ids) - 1,):
                values.append(self._at(prompt, logits[position], self._full_logits[prompt][position]))
        return torch.stack(values).mean()

    def _at(self, prompt: int, logits: Tensor, full: Tensor) -> Tensor:
        """The metric at one position, from the logits there: [outputs] each."""
        if self._metric == "l2":
            return (logits - full).square().mean()
        if self._metric == "kl_divergence":
            chances = [math.exp(x) for x in full.log_softmax(0).tolist()]
            differences = full.log_softmax(0) - logits.log_softmax(0)
            return sum((p * x for p, x in zip(chances, differences, strict=True)), torch.zeros(()))
        assert self._task.answers is not None
        assert self._task.wrong_answers is not None
        return logits[self._task.wrong_answers[prompt]] - logits[self._task.answers[prompt]]

    def _score(self, edge: int, gradients: Sequence[Mapping[str, Tensor]]) -> float:
        sender, receiver = self._names(edge)
        pairs = zip(self._deltas, gradients, strict=True)
        return sum(float((deltas[sender] * found[receiver]).sum()) for deltas, found in pairs)

    def _names(self, edge: int) -> tuple[str, str]:
        sender, receiver = self._graph.edge_ends(edge)
        return self._graph.sender_name(sender), self._graph.receiver_name(receiver)
