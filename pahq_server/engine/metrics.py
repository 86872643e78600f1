"""Metrics of a circuit from its logits. Lower is always better.

Shape suffixes: N places where the metric is read (prompts x positions), U output vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from pahq_server.core.errors import NonFiniteMetricError
from pahq_server.core.task import TokenTask

# A metric of logits [..., N, U]; leading dimensions are kept.
Metric = Callable[[Tensor], Tensor]

# The metric of each patched pass of a job, in order, or why the job's passes could not be measured.
Scores: TypeAlias = list[float] | Exception


def kl_divergence(task: TokenTask, full_NU: Tensor) -> Metric:
    """Mean over N of KL(p_full || p_circuit), natural logarithm, whole vocabulary."""
    log_full_NU = full_NU.log_softmax(-1)
    full_p_NU = log_full_NU.exp()

    def measure(logits: Tensor) -> Tensor:
        difference = log_full_NU - logits.log_softmax(-1)
        return (full_p_NU * difference).sum(-1).mean(-1)

    return measure


def l2(task: TokenTask, full_NU: Tensor) -> Metric:
    """Mean squared difference to the full model's logits, over N and U."""
    return lambda logits: (logits - full_NU).square().mean((-2, -1))


def logit_difference(task: TokenTask, full_NU: Tensor) -> Metric:
    """-mean(logit[answer] - logit[wrong answer]) over N."""
    assert task.answers is not None
    assert task.wrong_answers is not None
    places = [prompt for prompt, _ in task.metric_positions()]
    rows = torch.arange(len(places), device=full_NU.device)
    right = torch.tensor(task.answers)[places].to(full_NU.device)
    wrong = torch.tensor(task.wrong_answers)[places].to(full_NU.device)
    return lambda logits: -(logits[..., rows, right] - logits[..., rows, wrong]).mean(-1)


def answer_margins(task: TokenTask, logits_NU: Tensor) -> tuple[float, ...] | None:
    """logit[answer] - logit[wrong answer] at every place; None for a task without one of them."""
    if task.answers is None or task.wrong_answers is None:
        return None
    places = [prompt for prompt, _ in task.metric_positions()]
    rows = torch.arange(len(places), device=logits_NU.device)
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, places].to(logits_NU.device)
    return tuple((logits_NU[rows, right] - logits_NU[rows, wrong]).tolist())


METRICS: dict[str, Callable[[TokenTask, Tensor], Metric]] = {
    "kl_divergence": kl_divergence,
    "logit_difference": logit_difference,
    "l2": l2,
}
NEEDS_ANSWERS = frozenset({"logit_difference"})


def finite(value: float) -> float:
    """The value itself. Raises NonFiniteMetricError: NaN < tau is false and would keep every edge."""
    if not math.isfinite(value):
        raise NonFiniteMetricError(f"the metric is {value}")
    return value
