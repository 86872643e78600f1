"""What rows change in the logits, block by block of the vocabulary.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary, B some of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pahq_server.engine.sparse.maps import Maps, Unembedding
from pahq_server.engine.sparse.variants import as_tensor, runs
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


class ExactChanges:
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


class RoundedChanges:
    """In low precision from the rows' bases, whose own are exact.

    Args:
        of_bases: give the differences of the bases' logits, [N, U] each, for metrics that read them.
        means: give the means of these, [N] each, for probabilities [N, U].
        base: per row, the number of its base among them: int64, [V].
        dn: difference of the unembedding's input from the base's, [V, N, D].
        maps: the policy's.
    """

    def __init__(
        self,
        of_bases: Sequence[Callable[[], Tensor]],
        means: Sequence[Callable[[Tensor], Tensor]],
        base: Sequence[int],
        dn: Tensor,
        maps: Maps,
    ) -> None:
        self._of_bases, self._means = of_bases, means
        self._base, self._dn, self._maps = np.asarray(base), dn, maps

    @cached_property
    def _known(self) -> list[Tensor]:
        return [of_base() for of_base in self._of_bases]

    @cached_property
    def _unembedding(self) -> Unembedding:
        return self._maps.unembedding(self._dn)

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
