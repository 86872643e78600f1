"""Runs the method of node pruning on a made-up engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from helpers.method_run import MethodRun
from helpers.toy_nodes import LAYOUT, Toy

from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.pruning import Mask
from pahq_server.core.task import PromptTask, TokenTask
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


class Run(MethodRun):
    """Runs the method on a toy, until its end or for some operations; see `MethodRun`."""

    def __init__(
        self,
        toy: Toy,
        parameters: NodePruningParameters,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
        resolved: ResolvedObjective = RESOLVED,
    ) -> None:
        super().__init__(METHOD, resolved, parameters, toy.answer, journal, operations, seconds)

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
