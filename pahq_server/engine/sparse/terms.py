"""One sender's contribution to receivers, in the variants that hear it.

Shape suffixes as in `receivers`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pahq_server.engine.sparse.variants import Index
from pahq_server.precision.products import add_matmul, matmul


@dataclass(frozen=True)
class Term:
    """A sender's change in some of the merged variants.

    Args:
        y: [V, N, K or D] of these variants.
        variants: their numbers.
        tokens: index of their tokens among those of all merged variants; None if they are all.
    """

    y: Tensor
    variants: Index
    tokens: Tensor | None

    def add_to(self, total: Tensor | None, w: Tensor, shape: tuple[int, int]) -> Tensor:
        """Adds y @ w in place; ``total`` has the variants' layout ``shape``, None stands for zeros."""
        if self.tokens is None:
            return plus(total, self.y, w)
        if total is None:
            total = self.y.new_zeros(*shape, w.shape[-1])
        flat = total.view(-1, total.shape[-1])
        flat[self.tokens] = add_matmul(flat[self.tokens], self.y, w)
        return total

    def scatter(self, total: Tensor, values: Tensor) -> None:
        """Adds values of these variants in place."""
        if self.tokens is None:
            total += values
        else:
            total.flatten(0, 1).index_add_(0, self.tokens, values.flatten(0, 1))


def plus(total: Tensor | None, y: Tensor, w: Tensor) -> Tensor:
    """``total += y @ w`` in place; None stands for zeros."""
    return matmul(y, w) if total is None else add_matmul(total, y, w)
