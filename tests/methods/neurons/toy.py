"""Runs the method of neurons on a made-up engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from helpers.method_run import MethodRun
from helpers.toy_activations import HALF, VOCABULARY, ToyActivations

from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.neurons.method import Neurons
from pahq_server.methods.neurons.parameters import NeuronsParameters

LAYOUT = NodeLayout(layers=3, heads=2, d_head=4, d_model=8, d_mlp=20)
NEURONS = 60
METHOD = Neurons()


def texts(seed: int, positive: int, negative: int, longest: int = 90) -> TokenTask:
    """Random texts: the tokens of positive ones are below `HALF`, those of the others are not."""
    draw = np.random.default_rng(seed)
    bounds = [(0, HALF)] * positive + [(HALF, VOCABULARY)] * negative
    return TokenTask(
        tuple(tuple(draw.integers(low, high, draw.integers(1, longest)).tolist()) for low, high in bounds)
    )


def resolved(task: TokenTask, layout: NodeLayout = LAYOUT, precision: str = "fp32") -> ResolvedObjective:
    objective = Objective("m", PromptTask(()), "l2", "zero", "group", precision)
    return ResolvedObjective(objective, task, Graph(3, 2, 2), "revision", nodes=layout)


class Run(MethodRun):
    """Runs the method on a toy, until its end or for some operations; see `MethodRun`."""

    def __init__(
        self,
        toy: ToyActivations,
        task: TokenTask,
        parameters: NeuronsParameters,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
    ) -> None:
        def answer(operation: Operation) -> object:
            return toy.answer(operation, task)

        super().__init__(METHOD, resolved(task), parameters, answer, journal, operations, seconds)
