"""Runs the method of node pruning on a made-up engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from helpers.toy_nodes import LAYOUT, Toy

from pahq_server.core.artifact import Artifact, Progress, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import Mask
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.base import MethodContext
from pahq_server.methods.node_pruning.method import NodePruning
from pahq_server.methods.node_pruning.parameters import NodePruningParameters

RESOLVED = ResolvedObjective(
    Objective("m", PromptTask(()), "kl_divergence", "resample", "group", "fp32"),
    TokenTask(((1, 2), (3, 4)), ((1, 5), (3, 6))),
    Graph(2, 3, 3),
    "revision",
    nodes=LAYOUT,
)
METHOD = NodePruning()


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
                records = self.context.take_records()
                if records.alone:
                    self.journal = [b""] * len(self.journal)
                self.journal += [records.data] if records.count else []
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
