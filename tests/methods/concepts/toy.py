"""Runs the method of concepts on made-up states; codebooks are trained by the engine's own functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from helpers.method_run import MethodRun
from numpy.typing import NDArray

from pahq_server.core.activations import CaptureStates
from pahq_server.core.concepts import AssignCodes, MeasureCodebook, NameTokens, StartCodebook, TrainCodebook
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.concepts.training import assign, measure, start, train
from pahq_server.methods.concepts.method import Concepts
from pahq_server.methods.concepts.parameters import ConceptsParameters

LAYOUT = NodeLayout(layers=3, heads=2, d_head=4, d_model=16, d_mlp=20)
METHOD = Concepts()
CPU = torch.device("cpu")


class ToyStates:
    """A model whose states are those of the token's concept, rotated from layer to layer, with some noise.

    Args:
        seed: of states.
        vocabulary: how many tokens there are.
        concepts: how many concepts these share.
    """

    def __init__(self, seed: int, vocabulary: int = 60, concepts: int = 6) -> None:
        draw = np.random.default_rng(seed)
        self.concepts = np.concatenate(
            [np.arange(concepts), draw.integers(0, concepts, vocabulary - concepts)]
        )
        centres = draw.normal(size=(concepts, 16))
        centres *= 4 / np.linalg.norm(centres, axis=1, keepdims=True)
        own = centres[self.concepts] + draw.normal(0, 0.1, (vocabulary, 16))
        rotation, _ = np.linalg.qr(draw.normal(size=(16, 16)))
        turns = [np.linalg.matrix_power(rotation, layer) for layer in range(4)]
        self._table = np.stack([own @ turn for turn in turns], 1)

    def states(self, operation: CaptureStates, task: TokenTask) -> NDArray[np.float32]:
        rows = []
        for span in operation.spans:
            positions = np.arange(span.first, span.last)
            ids = np.asarray(task.clean[span.text])[positions]
            wave = 0.1 * np.sin(positions + span.text)[:, None, None]
            rows.append(self._table[ids][:, list(operation.layers)] + wave)
        return np.concatenate(rows).astype(np.float32)

    def answer(self, operation: Operation, task: TokenTask) -> object:
        """What an engine gives for an operation."""
        result: object
        match operation:
            case CaptureStates():
                result = self.states(operation, task)
            case StartCodebook():
                result = start(operation, CPU)
            case TrainCodebook():
                result = train(operation, CPU)
            case AssignCodes():
                result = assign(operation, CPU)
            case MeasureCodebook():
                result = measure(operation, CPU)
            case _:
                assert isinstance(operation, NameTokens)
                result = tuple(f"t{token}" for token in operation.tokens)
        operation.check(result)
        return result


def texts(seed: int, count: int, vocabulary: int = 60, longest: int = 100) -> TokenTask:
    """Random texts of different lengths."""
    draw = np.random.default_rng(seed)
    return TokenTask(
        tuple(tuple(draw.integers(0, vocabulary, draw.integers(1, longest)).tolist()) for _ in range(count))
    )


def resolved(task: TokenTask, precision: str = "fp32", layout: NodeLayout = LAYOUT) -> ResolvedObjective:
    objective = Objective("m", PromptTask(()), "l2", "zero", "group", precision)
    return ResolvedObjective(objective, task, Graph(3, 2, 2), "revision", nodes=layout)


class Run(MethodRun):
    """Runs the method on a toy, until its end or for some operations; see `MethodRun`."""

    def __init__(
        self,
        toy: ToyStates,
        task: TokenTask,
        parameters: ConceptsParameters,
        folder: Path,
        journal: Sequence[bytes] = (),
        operations: int | None = None,
        seconds: float = 0.1,
    ) -> None:
        def answer(operation: Operation) -> object:
            return toy.answer(operation, task)

        super().__init__(METHOD, resolved(task), parameters, answer, journal, operations, seconds, folder)

    def of(self, kind: type[Operation]) -> list[Operation]:
        """The operations of a class that were asked for."""
        return [operation for operation in self.asked if isinstance(operation, kind)]
