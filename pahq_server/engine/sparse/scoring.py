"""Metrics of patched passes, from changes of the unembedding's input.

A metric is computed from the difference of logits to the full model's. The score of a pass that changes
nothing is therefore exact: zero in, zero out. Logits are made a block of the vocabulary at a time.

Shape suffixes: V variants of the final residual stream, N metric positions, D d_model, U vocabulary, B a
block of it.
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
    """Differences of logits from the full model's, in the variants of the final residual stream."""

    def __call__(self, variants: slice, columns: slice) -> Tensor:
        """Returns the differences of some variants and columns: [v, N, B], in memory of its own."""
        ...

    def mean(self, p_NU: Tensor, weighted_ND: Tensor) -> Tensor:
        """Returns the mean of the differences under probabilities: [V, N].

        Args:
            p_NU: the probabilities.
            weighted_ND: ``p_NU @ w_u.T``, the mean of the unembedding's columns under the probabilities, of
                the matrix that the differences are made with.
        """
        ...


class ExactLogitChanges:
    """Differences of logits in full precision.

    Args:
        dn: difference of the unembedding's input from the full model's, [V, N, D].
        w_u: [D, U].
    """

    def __init__(self, dn: Tensor, w_u: Tensor) -> None:
        self._dn, self._w_u = dn, w_u

    def __call__(self, variants: slice, columns: slice) -> Tensor:
        return matmul(self._dn[variants], self._w_u[:, columns])

    def mean(self, p_NU: Tensor, weighted_ND: Tensor) -> Tensor:
        return products.sums(self._dn * weighted_ND)


class QuantizedLogitChanges:
    """Differences of logits under a precision policy: exact up to the base circuit, rounded from there.

    Args:
        of_bases: give the differences of the base circuits' logits, [N, U] each; called if a metric reads
            them.
        means: give the means of these, [N] each, for probabilities [N, U].
        base: per variant, the number of its base among them: [V].
        dn: difference of the unembedding's input from the base circuit's, [V, N, D].
        linears: of the policy.
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

    def __call__(self, variants: slice, columns: slice) -> Tensor:
        changes = self._unembedding(variants, columns)
        base = self._base[variants]
        for first, last in runs(base):
            changes[first:last] += self._known[base[first]][:, columns]
        return changes

    def mean(self, p_NU: Tensor, weighted_ND: Tensor) -> Tensor:
        of_bases = torch.stack([mean(p_NU) for mean in self._means])
        own = products.sums(self._unembedding.values() * weighted_ND)
        return own + of_bases[as_tensor(self._base, own.device)]


# Computes one metric per variant, [V], from the difference of the unembedding's input to the full model's,
# [V, N, D], and the differences of logits.
DifferenceMetric = Callable[[Tensor, LogitChanges], Tensor]

# How many columns of the unembedding, and how many logits, are worked on at once. On CPUs these fit into a
# core's cache.
BLOCK_COLUMNS, BLOCK_LOGITS = 2048, 1 << 19
DEVICE_COLUMNS, DEVICE_LOGITS = 1 << 14, 1 << 25


def kl_divergence(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """KL(p || p') = log(sum of p exp(dL - c)) - sum of p (dL - c), with dL the difference of logits.

    With c = p . dL the second sum is zero. The first is computed as log1p(sum of p expm1(dL - c)): nothing is
    lost where differences are small, and by Jensen's inequality the sum is never negative, so nothing cancels
    where they are large. Where dL itself is rounded, c is only near p . dL, and the second sum is small.

    Args:
        weights: of the model.
        task: the prompts.
        full_ND: the full model's normed input of the unembedding.
        linears: of a precision policy; None for full precision.
    """
    w_u = weights.weights.w_u
    log_p_NU = full_logits(weights, full_ND).log_softmax(-1)
    p_NU = log_p_NU.exp()
    quantized_ND = None if linears is None else linears.probability_weighted_columns(p_NU)
    weighted_ND = p_NU @ w_u.T if quantized_ND is None else quantized_ND
    knows_mean = linears is None or quantized_ND is not None
    vocabulary = w_u.shape[-1]
    del w_u  # frees a matrix that may have been read from a file for this

    def measure(dn_VND: Tensor, changes: LogitChanges) -> Tensor:
        mean_VN = changes.mean(p_NU, weighted_ND) if knows_mean else products.sums(dn_VND * weighted_ND)
        c_VN1 = mean_VN[..., None]

        def sums(variants: slice, columns: slice) -> Tensor:
            centred, p = changes(variants, columns).sub_(c_VN1[variants]), p_NU[:, columns]
            second = None if knows_mean else products.inner(centred, p)
            growth = products.sums(centred.expm1_().mul_(p))
            return growth[..., None] if second is None else torch.stack([growth, second], -1)

        sums_VNS = _sum_over_vocabulary(dn_VND, vocabulary, sums, 1 if knows_mean else 2)
        kl_VN = sums_VNS[..., 0].log1p()
        for index in torch.nonzero(~torch.isfinite(kl_VN).all(-1)).flatten().tolist():
            # expm1 overflows for very large differences. Then adding logarithms loses nothing.
            centred = changes(slice(index, index + 1), slice(0, vocabulary))[0] - c_VN1[index]
            kl_VN[index] = torch.where(
                kl_VN[index].isfinite(), kl_VN[index], (log_p_NU + centred).logsumexp(-1)
            )
        return _mean(kl_VN if knows_mean else kl_VN - sums_VNS[..., 1])

    return measure


def l2(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """Mean squared difference of logits. Args as for `kl_divergence`."""
    count = weights.arch.output_vocabulary

    def measure(dn_VND: Tensor, changes: LogitChanges) -> Tensor:
        def squares(variants: slice, columns: slice) -> Tensor:
            return products.sums(changes(variants, columns).square_())[..., None]

        return _mean(_sum_over_vocabulary(dn_VND, count, squares, 1)[..., 0]) / count

    return measure


def logit_difference(
    weights: SparseWeights, task: TokenTask, full_ND: Tensor, linears: QuantizedLinears | None
) -> DifferenceMetric:
    """The full model's negative logit difference, plus a linear function of dn: no logits are computed.

    Args as for `kl_divergence`.
    """
    assert task.answers is not None
    assert task.wrong_answers is not None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, prompts].to(full_ND.device)
    w_u, logits_NU = weights.weights.w_u, full_logits(weights, full_ND)
    positions = torch.arange(len(prompts), device=full_ND.device)
    full = -(logits_NU[positions, right] - logits_NU[positions, wrong]).mean()
    direction_ND = (w_u[:, right] - w_u[:, wrong]).T
    return lambda dn_VND, _: full - _mean(products.sums(dn_VND * direction_ND))


def answer_margins(weights: SparseWeights, task: TokenTask, full_ND: Tensor) -> tuple[float, ...] | None:
    """Returns the full model's logit[answer] - logit[wrong answer] at every metric position.

    None for a task without answers or wrong answers. Only the columns of these tokens are computed.
    """
    if task.answers is None or task.wrong_answers is None:
        return None
    prompts = [prompt for prompt, _ in task.metric_positions()]
    right, wrong = torch.tensor([task.answers, task.wrong_answers])[:, prompts].to(full_ND.device)
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
    """Returns the mean over metric positions: [V]."""
    return products.sums(x_VN) / x_VN.shape[-1]


def full_logits(weights: SparseWeights, normed_ND: Tensor) -> Tensor:
    """Returns the logits of a normed input of the unembedding: [N, U]."""
    logits_NU = normed_ND @ weights.weights.w_u
    return logits_NU if weights.weights.b_u is None else logits_NU + weights.weights.b_u


def _sum_over_vocabulary(
    dn_VND: Tensor, vocabulary: int, part: Callable[[slice, slice], Tensor], count: int
) -> Tensor:
    """Sums functions of the differences of logits over the vocabulary, a block of columns at a time.

    Args:
        dn_VND: difference of the unembedding's input to the full model's; gives V and N.
        vocabulary: number of logits, U.
        part: returns the sums over some columns, for some variants: [v, N, count].
        count: how many functions are summed.

    Returns:
        The sums, [V, N, count].
    """
    variants, positions, _ = dn_VND.shape
    block, logits = (BLOCK_COLUMNS, BLOCK_LOGITS) if dn_VND.is_cpu else (DEVICE_COLUMNS, DEVICE_LOGITS)
    total_VNS = dn_VND.new_zeros(variants, positions, count)
    for first in range(0, vocabulary, block):
        columns = slice(first, min(first + block, vocabulary))
        step = max(1, logits // (positions * (columns.stop - first)))
        for start in range(0, variants, step):
            some = slice(start, start + step)
            total_VNS[some] += part(some, columns)
    return total_VNS
