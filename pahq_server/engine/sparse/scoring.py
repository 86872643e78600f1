"""Metrics of rows from the normed input of the unembedding, as differences from the full model.

Working with differences makes the score of an unchanged row exact: zero in, zero out.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pahq_server.core.task import TokenTask
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.precision.products import matmul

# From n' - n of the full model, [V, N, D], to one metric per row, [V].
DifferenceMetric = Callable[[Tensor], Tensor]

# Columns of the unembedding, and logits, that are worked on at once: they stay in a core's cache.
BLOCK_COLUMNS = 2048
CACHED_LOGITS = 1 << 19


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

        def growth(change_VNB: Tensor, rows: slice, columns: slice) -> Tensor:
            centred = change_VNB.sub_(mean_VN1[rows]).expm1_()
            sums: Tensor = torch.linalg.vecdot(centred, p_NU[:, columns])
            return sums

        kl_VN = _sum_over_vocabulary(dn_VND, w_u, growth).log1p()
        for row in torch.nonzero(~torch.isfinite(kl_VN).all(-1)).flatten().tolist():
            # Very large differences overflow expm1; then nothing is lost by adding logarithms.
            centred = matmul(dn_VND[row], w_u) - mean_VN1[row]
            kl_VN[row] = torch.where(kl_VN[row].isfinite(), kl_VN[row], (log_p_NU + centred).logsumexp(-1))
        return kl_VN.mean(-1)

    return measure


def l2(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> DifferenceMetric:
    """Mean squared difference of logits."""
    w_u = weights.weights.w_u

    def squares(change_VNB: Tensor, rows: slice, columns: slice) -> Tensor:
        return change_VNB.square_().sum(-1)

    return lambda dn_VND: _sum_over_vocabulary(dn_VND, w_u, squares).mean(-1) / w_u.shape[-1]


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


def _sum_over_vocabulary(
    dn_VND: Tensor, w_u: Tensor, part: Callable[[Tensor, slice, slice], Tensor]
) -> Tensor:
    """Sum of a function of the change of logits over the vocabulary, [V, N], a few columns at a time.

    Args:
        dn_VND: change of the unembedding's input.
        w_u: [D, U].
        part: the sum, [V, N], over some columns for some rows, given the logits' change there, [V, N, B].
    """
    rows, places, _ = dn_VND.shape
    total_VN = torch.zeros(rows, places, dtype=dn_VND.dtype)
    for first in range(0, w_u.shape[-1], BLOCK_COLUMNS):
        columns = slice(first, min(first + BLOCK_COLUMNS, w_u.shape[-1]))
        step = max(1, CACHED_LOGITS // (places * (columns.stop - first)))
        for row in range(0, rows, step):
            some = slice(row, row + step)
            total_VN[some] += part(matmul(dn_VND[some], w_u[:, columns]), some, columns)
    return total_VN
