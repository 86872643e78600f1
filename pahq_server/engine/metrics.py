"""Metrics of a circuit from its logits, and their gradients. Lower is always better.

To add a metric: define it and its gradient here, and the metric in `sparse.scoring` (from differences of
logits), and list it in all three tables.

Shape suffixes: N metric positions (prompts x positions), U vocabulary.
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

# The metric of each patched pass of a job, in order, or the error because of which none could be measured.
Scores: TypeAlias = list[float] | Exception


def kl_divergence(task: TokenTask, full_NU: Tensor) -> Metric:
    """KL(p_full || p_circuit), mean over N: natural logarithm, whole vocabulary."""
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
    positions, right, wrong = _answer_logits(task, full_NU.device)
    return lambda logits: -(logits[..., positions, right] - logits[..., positions, wrong]).mean(-1)


def _answer_logits(task: TokenTask, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where logits of answers and wrong answers are: N in order, and the token ids there, int64 [N] each."""
    assert task.answers is not None
    assert task.wrong_answers is not None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = (
        torch.tensor(answers)[prompts].to(device) for answers in (task.answers, task.wrong_answers)
    )
    return torch.arange(len(prompts), device=device), right, wrong


def answer_margins(task: TokenTask, logits_NU: Tensor) -> tuple[float, ...] | None:
    """Returns logit[answer] - logit[wrong answer] at every metric position.

    None for a task without answers or without wrong answers.
    """
    if task.answers is None or task.wrong_answers is None:
        return None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    positions = torch.arange(len(prompts), device=logits_NU.device)
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, prompts].to(logits_NU.device)
    return tuple((logits_NU[positions, right] - logits_NU[positions, wrong]).tolist())


def kl_gradient(task: TokenTask, full_NU: Tensor, logits_NU: Tensor) -> Tensor:
    """The gradient of `kl_divergence`: [N, U]."""
    return (logits_NU.softmax(-1) - full_NU.softmax(-1)) / len(logits_NU)


def l2_gradient(task: TokenTask, full_NU: Tensor, logits_NU: Tensor) -> Tensor:
    """The gradient of `l2`: [N, U]."""
    return (logits_NU - full_NU) * (2 / logits_NU.numel())


def logit_difference_gradient(task: TokenTask, full_NU: Tensor, logits_NU: Tensor) -> Tensor:
    """The gradient of `logit_difference`, which depends on no logits: [N, U]."""
    positions, right, wrong = _answer_logits(task, logits_NU.device)
    gradient, share = torch.zeros_like(logits_NU), logits_NU.new_ones(len(right)) / len(right)
    gradient.index_put_((positions, right), -share, accumulate=True)
    return gradient.index_put_((positions, wrong), share, accumulate=True)


METRICS: dict[str, Callable[[TokenTask, Tensor], Metric]] = {
    "kl_divergence": kl_divergence,
    "logit_difference": logit_difference,
    "l2": l2,
}
# Gradients with respect to the logits, from the full model's logits and those at which they are taken.
LOGIT_GRADIENTS: dict[str, Callable[[TokenTask, Tensor, Tensor], Tensor]] = {
    "kl_divergence": kl_gradient,
    "logit_difference": logit_difference_gradient,
    "l2": l2_gradient,
}
# Metrics that read the logits of answers and wrong answers.
NEEDS_ANSWERS = frozenset({"logit_difference"})


def finite(value: float) -> float:
    """Returns the value. Raises NonFiniteMetricError if it is not finite.

    A method that goes on with NaN would take wrong decisions: ``NaN < tau`` is false, so ACDC would keep
    every edge.
    """
    if not math.isfinite(value):
        raise NonFiniteMetricError(f"the metric is {value}")
    return value
