"""Gates of nodes: how training draws them, what their sizes are, and what each layer multiplies with.

Training draws gates from the hard concrete distribution (Louizos et al. 2018, arXiv:1712.01312, eq. 10 to
12). Some nodes contain others, and their gates meet at the same values: a layer reads products of gates.

Letters in shapes: L layers, H heads, K d_head, M hidden units of an MLP, D d_model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pahq_server.core.pruning import BETA, GAMMA, ZETA, NodeKind, NodeLayout

# A gate is above 0 with probability sigmoid(log_alpha - OPEN_SHIFT).
OPEN_SHIFT = BETA * math.log(-GAMMA / ZETA)


def logistic_noise(gates: int, seed: int, step: int) -> Tensor:
    """Draws log(u) - log(1 - u) with u uniform in (0, 1), for every gate.

    It depends on the arguments alone. It is drawn on the CPU whatever the device is, for all gates whichever
    are trained.

    Args:
        gates: how many there are.
        seed: of the training, from 0 on.
        step: its number, from 0 on.

    Returns:
        float64, [gates].
    """
    (mixed,) = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(mixed))
    # Drawn numbers can be 0, whose logarithm is not finite.
    u = torch.rand(gates, generator=generator, dtype=torch.float64).clamp_(min=2.0**-54)
    return u.log() - torch.log1p(-u)


def hard_concrete(log_alpha: Tensor, noise: Tensor) -> Tensor:
    """Returns gates in [0, 1]: s = sigmoid((noise + log_alpha) / beta), z = clamp(s (zeta - gamma) + gamma).

    Args:
        log_alpha: of the gates.
        noise: see `logistic_noise`; of the same shape.
    """
    stretched = torch.sigmoid((noise + log_alpha) / BETA) * (ZETA - GAMMA) + GAMMA
    return stretched.clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """Returns the probability that a gate is above 0. Summed over gates it is their expected size, E[L0]."""
    return torch.sigmoid(log_alpha - OPEN_SHIFT)


def expected_sizes(
    layout: NodeLayout, log_alpha: Tensor, trained: Iterable[NodeKind]
) -> dict[NodeKind, float]:
    """Returns the expected size of each kind that the model has; all nodes of a kind that is not trained.

    Args:
        layout: of the model.
        log_alpha: of all gates, [gates].
        trained: kinds whose gates are trained.
    """
    kinds = set(trained)
    return {
        kind: float(open_probability(log_alpha[part].double()).sum())
        if kind in kinds
        else part.stop - part.start
        for kind, part in layout.slices()
        if part.stop > part.start
    }


@dataclass(frozen=True)
class LayerGates:
    """What a layer multiplies values with; numbers in [0, 1].

    Args:
        neurons: on z, the outputs of heads before W_O, [H * K].
        hidden: on the hidden units of the MLP, [M].
        outputs: on what the MLP writes to the residual stream, [D].

    The last two are empty in models without MLPs.
    """

    neurons: Tensor
    hidden: Tensor
    outputs: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.neurons, self.hidden, self.outputs))


@dataclass(frozen=True)
class ModelGates:
    """What all layers multiply with, in the order of `LayerGates`: [L, H * K], [L, M] and [L, D]."""

    neurons: Tensor
    hidden: Tensor
    outputs: Tensor

    @classmethod
    def of(cls, layout: NodeLayout, z: Tensor) -> ModelGates:
        """Multiplies the gates that meet at the same values.

        Args:
            layout: of the model.
            z: all gates, [gates]; may be part of a graph of autograd.
        """
        of: Mapping[NodeKind, Tensor] = {
            kind: z[part].view(layout.layers, -1) for kind, part in layout.slices()
        }
        attention = of["layers"] * of["attention_blocks"] * of["heads"]
        outputs = of["mlp_outputs"]
        if layout.d_mlp:
            outputs = of["layers"] * of["mlp_blocks"] * outputs
        return cls(
            attention.repeat_interleave(layout.d_head, 1) * of["attention_neurons"], of["mlp_hidden"], outputs
        )

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.neurons, self.hidden, self.outputs))

    def detached(self) -> ModelGates:
        """Returns the same outside of any graph of autograd."""
        return ModelGates(*(x.detach() for x in self))

    def layer(self, index: int) -> LayerGates:
        """Returns those of one layer."""
        return LayerGates(*(x[index] for x in self))

    def same_layer(self, other: ModelGates, index: int) -> bool:
        """Tells whether all gates of a layer are those of another circuit."""
        return all(map(torch.equal, self.layer(index), other.layer(index)))
