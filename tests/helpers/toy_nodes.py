"""A made-up model for node pruning: which nodes are needed is known, and so is the KL of every circuit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.operations import Operation
from pahq_server.core.pruning import (
    Mask,
    MaskFigures,
    MeasureMasks,
    NodeKind,
    NodeLayout,
    TrainedSteps,
    Training,
    TrainMasks,
    consistent,
)

LAYOUT = NodeLayout(layers=2, heads=3, d_head=4, d_model=5, d_mlp=6)
LEAVES: tuple[NodeKind, ...] = ("attention_neurons", "mlp_hidden", "mlp_outputs")


class Toy:
    """A model in which some neurons, hidden units and outputs matter: the KL adds up over those that lack.

    Args:
        seed: of which matter, and by how much.
        needed: how many neurons, and as many pairs of a hidden unit and an output.
        trains: how well training finds them: 0 for not at all.
        layout: of the model.
    """

    def __init__(self, seed: int, needed: int = 3, trains: float = 1.0, layout: NodeLayout = LAYOUT) -> None:
        draw = np.random.default_rng(seed)
        self.layout = layout
        self.matters: NDArray[np.float64] = np.zeros(layout.size)
        of = layout.split(self.matters)
        for kind in (kind for kind in LEAVES if kind in layout.kinds):
            chosen = draw.choice(of[kind].size, needed, replace=False)
            of[kind].reshape(-1)[chosen] = draw.uniform(0.5, 1, needed)
        # An output is nothing without hidden units of its layer, and the other way round.
        for hidden, outputs in zip(of["mlp_hidden"], of["mlp_outputs"], strict=True):
            if not (hidden.any() and outputs.any()):
                hidden[:] = outputs[:] = 0
        self._trains = trains

    @property
    def planted(self) -> Mask:
        """The smallest circuit with all that matters."""
        kept = np.ones(self.layout.size, dtype=bool)
        for kind, part in self.layout.slices():
            if kind in LEAVES:
                kept[part] = self.matters[part] > 0
        return consistent(self.layout, kept)

    def kl(self, mask: Mask) -> float:
        return float(self.matters[~consistent(self.layout, mask)].sum())

    def answer(self, operation: Operation) -> object:
        """What an engine gives for an operation."""
        result: object
        if isinstance(operation, MeasureMasks):
            result = [MaskFigures(self.kl(mask), 0.5, None, None) for mask in operation.masks]
        else:
            assert isinstance(operation, TrainMasks)
            result = self.trained(operation)
        operation.check(result)
        return result

    def trained(self, operation: TrainMasks) -> TrainedSteps:
        """Gates go towards what is needed, with noise of their step."""
        training, kl = operation.training, []
        for _ in range(operation.steps):
            training = self._step(training, operation)
            kl.append(training.average or 0.0)
        return TrainedSteps(training, tuple(kl), dict.fromkeys(operation.penalty.weights, 1.0))

    def _step(self, training: Training, operation: TrainMasks) -> Training:
        noise = np.random.default_rng((operation.penalty.seed, training.step))
        towards = np.where(self.planted, 1.0, -1.0) * self._trains + noise.normal(0, 0.5, self.layout.size)
        trained = np.zeros(self.layout.size, dtype=bool)
        for kind, part in self.layout.slices():
            trained[part] = kind in operation.penalty.weights
        log_alpha = (training.log_alpha + 0.1 * trained * towards).astype(np.float32)
        kl = self.kl(log_alpha > 0)
        return Training(
            log_alpha,
            training.first + np.float32(1),
            training.second * np.float32(0.5),
            training.step + 1,
            training.scale * 1.01,
            kl,
        )
