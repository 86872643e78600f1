"""Metrics of rows from the normed input of the unembedding, as differences from the full model.

Working with differences makes the score of an unchanged row exact: zero in, zero out.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pahq_server.core.task import TokenTask
from pahq_server.engine.products import matmul
from pahq_server.engine.sparse.weights import SparseWeights

# From n' - n of the full model, [V, N, D], to one metric per row, [V].
DifferenceMetric = Callable[[Tensor], Tensor]

# Logits that are held at once: enough rows that the unembedding is read from memory once for many.
CHUNK_ELEMENTS = 1 << 22


def kl_divergence(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> DifferenceMetric:
    """KL(p || p') = log(sum of p exp(dL - c)) with c = p . dL and dL the difference of logits.

    Computed as log1p(sum of p expm1(dL - c)): nothing is lost where differences are small, and by Jensen's
    inequality the sum is never negative, so nothing cancels where they are large.
    """
    w_u = weights.weights.w_u
    log_p_NU = _logits(weights, full_ND).log_softmax(-1)
    p_NU = log_p_NU.exp()
    read_ND = p_NU @ w_u.T

    def measure(dn_VND: Tensor) -> Tensor:
        mean_VN1 = (dn_VND * read_ND).sum(-1, keepdim=True)

        def centred() -> Tensor:
            return matmul(dn_VND, w_u).sub_(mean_VN1)

        growth_VN: Tensor = torch.linalg.vecdot(centred().expm1_(), p_NU)
        kl_VN: Tensor = growth_VN.log1p()
        if not bool(torch.isfinite(kl_VN).all()):
            # Very large differences overflow expm1; then nothing is lost by adding logarithms.
            kl_VN = torch.where(kl_VN.isfinite(), kl_VN, (log_p_NU + centred()).logsumexp(-1))
        return kl_VN.mean(-1)

    return _chunked(measure, len(full_ND) * w_u.shape[-1])


def l2(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> DifferenceMetric:
    """Mean squared difference of logits."""
    w_u = weights.weights.w_u
    return _chunked(lambda dn_VND: matmul(dn_VND, w_u).square().mean((-2, -1)), len(full_ND) * w_u.shape[-1])


def logit_difference(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> DifferenceMetric:
    """The full model's plus a linear function of the difference: no logits are needed."""
    assert task.answers is not None
    assert task.wrong_answers is not None
    places = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = torch.tensor(task.answers)[places], torch.tensor(task.wrong_answers)[places]
    w_u, logits_NU = weights.weights.w_u, _logits(weights, full_ND)
    rows = torch.arange(len(places))
    full = -(logits_NU[rows, right] - logits_NU[rows, wrong]).mean()
    direction_ND = (w_u[:, right] - w_u[:, wrong]).T
    return lambda dn_VND: full - (dn_VND * direction_ND).sum(-1).mean(-1)


DIFFERENCE_METRICS: dict[str, Callable[[SparseWeights, TokenTask, Tensor], DifferenceMetric]] = {
    "kl_divergence": kl_divergence,
    "logit_difference": logit_difference,
    "l2": l2,
}


def _logits(weights: SparseWeights, normed_ND: Tensor) -> Tensor:
    logits_NU = normed_ND @ weights.weights.w_u
    return logits_NU if weights.weights.b_u is None else logits_NU + weights.weights.b_u


def _chunked(measure: DifferenceMetric, elements_per_row: int) -> DifferenceMetric:
    """Applies a metric to a few rows at a time."""
    rows = max(1, CHUNK_ELEMENTS // elements_per_row)
    return lambda dn_VND: torch.cat([measure(chunk) for chunk in dn_VND.split(rows)])
