"""Runs the method of neurons on a made-up engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from helpers.toy_activations import HALF, VOCABULARY, ToyActivations

from pahq_server.core.artifact import Artifact, Progress
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.base import MethodContext
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


class Run:
    """Runs the method, until its end or for some operations.

    Args:
        toy: the engine.
        task: texts.
        parameters: of the method.
        journal: what earlier runs recorded.
        operations: after which the run is killed; None for its end.
        seconds: what each operation takes.
    """

    def __init__(
        self,
        toy: ToyActivations,
        task: TokenTask,
        parameters: NeuronsParameters,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
    ) -> None:
        now = [0.0]
        self.context = MethodContext(resolved(task), parameters, journal, len(journal), clock=lambda: now[0])
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
            answer = toy.answer(operation, task)

    @property
    def data(self) -> bytes:
        assert self.artifact is not None
        return self.artifact.data
