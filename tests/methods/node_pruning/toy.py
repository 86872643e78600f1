"""A made-up engine for node pruning: which nodes are needed is known, and so is the KL of every circuit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import Artifact, Progress, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
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
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.base import MethodContext
from pahq_server.methods.node_pruning.method import NodePruning
from pahq_server.methods.node_pruning.parameters import NodePruningParameters

LAYOUT = NodeLayout(layers=2, heads=3, d_head=4, d_model=5, d_mlp=6)
LEAVES: tuple[NodeKind, ...] = ("attention_neurons", "mlp_hidden", "mlp_outputs")
RESOLVED = ResolvedObjective(
    Objective("m", PromptTask(()), "kl_divergence", "resample", "group", "fp32"),
    TokenTask(((1, 2), (3, 4)), ((1, 5), (3, 6))),
    Graph(2, 3, 3),
    "revision",
    nodes=LAYOUT,
)
METHOD = NodePruning()


class Toy:
    """A model in which some neurons, hidden units and outputs matter: the KL adds up over those that lack.

    Args:
        seed: of which matter, and by how much.
        needed: how many neurons, and as many pairs of a hidden unit and an output.
        trains: how well training finds them: 0 for not at all.
    """

    def __init__(self, seed: int, needed: int = 3, trains: float = 1.0) -> None:
        draw = np.random.default_rng(seed)
        self.matters: NDArray[np.float64] = np.zeros(LAYOUT.size)
        of = LAYOUT.split(self.matters)
        for kind in LEAVES:
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
        kept = np.ones(LAYOUT.size, dtype=bool)
        for kind, part in LAYOUT.slices():
            if kind in LEAVES:
                kept[part] = self.matters[part] > 0
        return consistent(LAYOUT, kept)

    def kl(self, mask: Mask) -> float:
        return float(self.matters[~consistent(LAYOUT, mask)].sum())

    def answer(self, operation: Operation) -> object:
        result: object
        if isinstance(operation, MeasureMasks):
            result = [MaskFigures(self.kl(mask), 0.5, None, None) for mask in operation.masks]
        else:
            assert isinstance(operation, TrainMasks)
            training, kl = operation.training, []
            for _ in range(operation.steps):
                training = self._step(training, operation)
                kl.append(training.average or 0.0)
            sizes = dict.fromkeys(operation.penalty.weights, 1.0)
            result = TrainedSteps(training, tuple(kl), sizes)
        operation.check(result)
        return result

    def _step(self, training: Training, operation: TrainMasks) -> Training:
        noise = np.random.default_rng((operation.penalty.seed, training.step))
        towards = np.where(self.planted, 1.0, -1.0) * self._trains + noise.normal(0, 0.5, LAYOUT.size)
        trained = np.zeros(LAYOUT.size, dtype=bool)
        for kind, part in LAYOUT.slices():
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


class Run:
    """Runs the method, until its end or for some operations.

    Args:
        toy: the engine.
        parameters: of the method.
        journal: what earlier runs recorded.
        operations: after which the run is killed; None for its end.
        seconds: what each operation takes.
    """

    def __init__(
        self,
        toy: Toy,
        parameters: NodePruningParameters,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
        resolved: ResolvedObjective = RESOLVED,
    ) -> None:
        now = [0.0]
        self.context = MethodContext(resolved, parameters, journal, len(journal), clock=lambda: now[0])
        self.asked: list[Operation] = []
        self.told: list[Progress] = []
        self.journal = list(journal)
        self.artifact: Artifact | None = None
        steps = METHOD.run(self.context)
        answer: object = None
        while operations is None or len(self.asked) < operations:
            try:
                operation = steps.send(answer)
            except StopIteration as stop:
                self.artifact = stop.value
                break
            finally:
                data, count = self.context.take_records()
                self.journal += [data] if count else []
                self.told.append(self.context.progress)
            self.asked.append(operation)
            now[0] += seconds
            answer = toy.answer(operation)

    @property
    def kept(self) -> Mask:
        assert self.artifact is not None
        return masks_of(self.artifact)["kept"]


def masks_of(artifact: Artifact) -> dict[str, Mask]:
    """The two circuits of an artifact."""
    _, arrays = unpack(artifact.data)
    return {
        name: np.unpackbits(arrays[name], count=LAYOUT.size, bitorder="little").astype(bool)
        for name in ("kept", "trained")
    }
