"""What rows change in the logits, block by block of the vocabulary.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary, B some of it.


Metrics of rows from the normed input of the unembedding, as differences from the full model.

Working with differences makes the score of an unchanged row exact: zero in, zero out.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.task import TokenTask
from pahq_server.engine.sparse.quantized import QuantizedLinears, QuantizedUnembedding
from pahq_server.engine.sparse.variants import as_tensor, runs
from pahq_server.engine.sparse.weights import SparseWeights
from pahq_server.precision import products
from pahq_server.precision.products import matmul


class LogitChanges(Protocol):
    """Differences of logits from the full model's."""

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Those of some rows and columns: [v, N, B], in memory of its own."""
        ...

    def mean(self, p_NU: Tensor, read_ND: Tensor) -> Tensor:
        """Their mean under probabilities: [V, N].

        Args:
            p_NU: the probabilities.
            read_ND: ``p_NU @ w_u.T``, of the matrix that the changes are made with.
        """
        ...


class ExactLogitChanges:
    """In full precision.

    Args:
        dn: difference of the unembedding's input from the full model's, [V, N, D].
        w_u: [D, U].
    """

    def __init__(self, dn: Tensor, w_u: Tensor) -> None:
        self._dn, self._w_u = dn, w_u

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        return matmul(self._dn[rows], self._w_u[:, columns])

    def mean(self, p_NU: Tensor, read_ND: Tensor) -> Tensor:
        return products.sums(self._dn * read_ND)


class QuantizedLogitChanges:
    """In low precision from the rows' bases, whose own are exact.

    Args:
        of_bases: give the differences of the bases' logits, [N, U] each, for metrics that read them.
        means: give the means of these, [N] each, for probabilities [N, U].
        base: per row, the number of its base among them: int64, [V].
        dn: difference of the unembedding's input from the base's, [V, N, D].
        linears: the policy's.
    """

    def __init__(
        self,
        of_bases: Sequence[Callable[[], Tensor]],
        means: Sequence[Callable[[Tensor], Tensor]],
        base: Sequence[int],
        dn: Tensor,
        linears: QuantizedLinears,
    ) -> None:
        self._of_bases, self._means = of_bases, means
        self._base, self._dn, self._linears = np.asarray(base), dn, linears

    @cached_property
    def _known(self) -> list[Tensor]:
        return [of_base() for of_base in self._of_bases]

    @cached_property
    def _unembedding(self) -> QuantizedUnembedding:
        return self._linears.unembedding(self._dn)

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        changes = self._unembedding(rows, columns)
        base = self._base[rows]
        for first, last in runs(base):
            changes[first:last] += self._known[base[first]][:, columns]
        return changes

    def mean(self, p_NU: Tensor, read_ND: Tensor) -> Tensor:
        of_bases = torch.stack([mean(p_NU) for mean in self._means])
        own = products.sums(self._unembedding.values() * read_ND)
        return own + of_bases[as_tensor(self._base, own.device)]


# From n' - n of the full model, [V, N, D], and what it changes in the logits, to one metric per row, [V].
DifferenceMetric = Callable[[Tensor, LogitChanges], Tensor]

# Columns of the unembedding, and logits, that are worked on at once: on CPUs they stay in a core's cache.
BLOCK_COLUMNS, BLOCK_LOGITS = 2048, 1 << 19
DEVICE_COLUMNS, DEVICE_LOGITS = 1 << 14, 1 << 25


def kl_divergence(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """KL(p || p') = log(sum of p exp(dL - c)) - sum of p (dL - c) with dL the difference of logits.

    With c = p . dL the second sum is zero. The first is computed as log1p(sum of p expm1(dL - c)): nothing is
    lost where differences are small, and by Jensen's inequality the sum is never negative, so nothing cancels
    where they are large. Where dL itself is rounded, c is only near p . dL, and the second sum is small.
    """
    w_u = weights.weights.w_u
    log_p_NU = _logits(weights, full_ND).log_softmax(-1)
    p_NU = log_p_NU.exp()
    probability_weighted_columns = None if linears is None else linears.probability_weighted_columns(p_NU)
    read_ND, vocabulary = (
        p_NU @ w_u.T if probability_weighted_columns is None else probability_weighted_columns,
        w_u.shape[-1],
    )
    knows_mean = linears is None or probability_weighted_columns is not None
    del w_u, probability_weighted_columns  # it may have been read for this ablate

    def measure(dn_VND: Tensor, changes: LogitChanges) -> Tensor:
        mean_VN = changes.mean(p_NU, read_ND) if knows_mean else products.sums(dn_VND * read_ND)
        c_VN1 = mean_VN[..., None]

        def sums(rows: slice, columns: slice) -> Tensor:
            centred, p = changes(rows, columns).sub_(c_VN1[rows]), p_NU[:, columns]
            second = None if knows_mean else products.inner(centred, p)
            growth = products.sums(centred.expm1_().mul_(p))
            return growth[..., None] if second is None else torch.stack([growth, second], -1)

        sums_VNS = _sum_over_vocabulary(dn_VND, vocabulary, sums, 1 if knows_mean else 2)
        kl_VN = sums_VNS[..., 0].log1p()
        for row in torch.nonzero(~torch.isfinite(kl_VN).all(-1)).flatten().tolist():
            # Very large differences overflow expm1; then nothing is lost by adding logarithms.
            centred = changes(slice(row, row + 1), slice(0, vocabulary))[0] - c_VN1[row]
            kl_VN[row] = torch.where(kl_VN[row].isfinite(), kl_VN[row], (log_p_NU + centred).logsumexp(-1))
        return _mean(kl_VN if knows_mean else kl_VN - sums_VNS[..., 1])

    return measure


def l2(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """Mean squared difference of logits."""
    count = weights.arch.output_vocabulary

    def measure(dn_VND: Tensor, changes: LogitChanges) -> Tensor:
        def squares(rows: slice, columns: slice) -> Tensor:
            return products.sums(changes(rows, columns).square_())[..., None]

        return _mean(_sum_over_vocabulary(dn_VND, count, squares, 1)[..., 0]) / count

    return measure


def logit_difference(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """The full model's add_product a linear function of the difference: no logits are needed."""
    assert task.answers is not None
    assert task.wrong_answers is not None
    places = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, places].to(full_ND.device)
    w_u, logits_NU = weights.weights.w_u, _logits(weights, full_ND)
    rows = torch.arange(len(places), device=full_ND.device)
    full = -(logits_NU[rows, right] - logits_NU[rows, wrong]).mean()
    direction_ND = (w_u[:, right] - w_u[:, wrong]).T
    return lambda dn_VND, _: full - _mean(products.sums(dn_VND * direction_ND))


def answer_margins(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> tuple[float, ...] | None:
    """The full model's logit[answer] - logit[wrong answer] at every place, without the other logits.

    None for a task without answers or wrong answers.
    """
    if task.answers is None or task.wrong_answers is None:
        return None
    places = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, places].to(full_ND.device)
    w_u, b_u = weights.weights.w_u, weights.weights.b_u
    margins_N = (full_ND * (w_u[:, right] - w_u[:, wrong]).T).sum(-1)
    return tuple((margins_N if b_u is None else margins_N + (b_u[right] - b_u[wrong])).tolist())


DIFFERENCE_METRICS: dict[
    str, Callable[[SparseWeights, TokenTask, Tensor, QuantizedLinears | None], DifferenceMetric]
] = {
    "kl_divergence": kl_divergence,
    "logit_difference": logit_difference,
    "l2": l2,
}


def _mean(x_VN: Tensor) -> Tensor:
    """Over the places: [V]."""
    return products.sums(x_VN) / x_VN.shape[-1]


def _logits(weights: SparseWeights, normed_ND: Tensor) -> Tensor:
    logits_NU = normed_ND @ weights.weights.w_u
    return logits_NU if weights.weights.b_u is None else logits_NU + weights.weights.b_u


def _sum_over_vocabulary(
    dn_VND: Tensor, vocabulary: int, part: Callable[[slice, slice], Tensor], count: int
) -> Tensor:
    """Sums of functions of the change of logits over the vocabulary, [V, N, count], a few columns at a time.

    Args:
        dn_VND: change of the unembedding's input.
        vocabulary: number of logits, U.
        part: the sums over some columns for some rows: [v, N, count].
        count: how removes_most sums.
    """
    rows, places, _ = dn_VND.shape
    block, logits = (BLOCK_COLUMNS, BLOCK_LOGITS) if dn_VND.is_cpu else (DEVICE_COLUMNS, DEVICE_LOGITS)
    total_VNS = dn_VND.new_zeros(rows, places, count)
    for first in range(0, vocabulary, block):
        columns = slice(first, min(first + block, vocabulary))
        step = max(1, logits // (places * (columns.stop - first)))
        for row in range(0, rows, step):
            some = slice(row, row + step)
            total_VNS[some] += part(some, columns)
    return total_VNS
