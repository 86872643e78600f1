"""What rows change in the logits, block by block of the vocabulary.

Shape suffixes: V rows, N places where the metric is read, D d_model, U output vocabulary, B some of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from pahq_server.engine.sparse.maps import Maps
from pahq_server.precision.products import matmul


class LogitChanges(Protocol):
    """Differences of logits from the full model's."""

    @property
    def exact(self) -> bool:
        """Whether they are the unembedding of the difference of its inputs, in full precision."""
        ...

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        """Those of some rows and columns: [v, N, B], in memory of its own."""
        ...


@dataclass(frozen=True)
class ExactChanges:
    """In full precision.

    Args:
        dn: difference of the unembedding's input from the full model's, [V, N, D].
        w_u: [D, U].
    """

    dn: Tensor
    w_u: Tensor
    exact = True

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        return matmul(self.dn[rows], self.w_u[:, columns])


@dataclass(frozen=True)
class RoundedChanges:
    """In low precision from the rows' bases, whose own are exact.

    Args:
        of_bases: give the differences of the bases' logits, [N, U] each, for metrics that read them.
        base: per row, the number of its base among them: int64, [V].
        dn: difference of the unembedding's input from the base's, [V, N, D].
        maps: the policy's.
    """

    of_bases: Sequence[Callable[[], Tensor]]
    base: list[int]
    dn: Tensor
    maps: Maps
    exact = False

    @cached_property
    def _known(self) -> list[Tensor]:
        return [of_base() for of_base in self.of_bases]

    def __call__(self, rows: slice, columns: slice) -> Tensor:
        changes = self.maps.unembed(self.dn[rows], columns)
        for change, base in zip(changes, self.base[rows], strict=True):
            change += self._known[base][:, columns]
        return changes
