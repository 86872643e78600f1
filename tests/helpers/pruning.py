"""Node pruning on an engine in this process: jobs to their end, masks measured, artifacts read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.engine import Objective, Work
from pahq_server.core.pruning import Mask, MaskFigures, MeasureMasks, NodeLayout
from pahq_server.core.task import TaskSpec
from pahq_server.engine.engine import ModelEngine
from pahq_server.methods.base import MethodContext
from pahq_server.methods.registry import find
from pahq_server.models.architecture import Architecture
from pahq_server.models.loading import LoadedModel

KL = "kl_divergence"


@dataclass(frozen=True, eq=False)
class Pruned:
    """What a job of node pruning found.

    Args:
        layout: of the model.
        header: of the artifact.
        kept: the mask in the end.
        trained: the mask that training found.
        log_alpha: of the gates, float32.
    """

    layout: NodeLayout
    header: dict[str, Any]
    kept: Mask
    trained: Mask
    log_alpha: np.ndarray[Any, Any]


def layout_of(arch: Architecture) -> NodeLayout:
    return NodeLayout(arch.layers, arch.heads, arch.d_head, arch.d_model, arch.d_mlp)


def pruned(artifact: Artifact) -> Pruned:
    """Reads an artifact of node pruning."""
    assert (artifact.kind, artifact.version) == ("node_circuit", 1)
    return read_pruned(artifact.data)


def read_pruned(data: bytes) -> Pruned:
    """Reads the bytes of an artifact of node pruning."""
    header, arrays = unpack(data)
    layout = NodeLayout(**header["model_layout"])

    def mask(name: str) -> Mask:
        return np.unpackbits(arrays[name], count=layout.size, bitorder="little").astype(bool)

    return Pruned(layout, header, mask("kept"), mask("trained"), arrays["log_alpha"])


class Engine:
    """An engine with one model, and a task on it.

    Args:
        loaded: the model, folded.
        task: prompts.
        ablation: what closed gates carry.
    """

    def __init__(self, loaded: LoadedModel, task: TaskSpec, ablation: str = "resample") -> None:
        self.engine = ModelEngine({"model": loaded})
        self.layout = layout_of(loaded.model.architecture)
        self.objective = Objective("model", task, KL, ablation, "group", "fp32")

    def run(self, method: str, **parameters: object) -> Artifact:
        """Runs a job to its end, and returns its artifact."""
        found = find(method)
        given = found.read(parameters)
        resolved = self.engine.resolve(self.objective, found.needs_activations)
        found.check(given, resolved)
        state = self.engine.open(resolved)
        steps = found.run(MethodContext(resolved, given))
        operation = next(steps)
        try:
            while True:
                (outcome,) = self.engine.run([Work(state, operation)])
                operation.check(outcome)
                operation = steps.send(outcome)
        except StopIteration as stop:
            artifact: Artifact = stop.value
            return artifact
        finally:
            self.engine.close(state)

    def prune(self, **parameters: object) -> Pruned:
        return pruned(self.run("node_pruning", **parameters))

    def measure(self, masks: Sequence[Mask], task: TaskSpec | None = None) -> list[MaskFigures]:
        """Measures binary circuits, on other prompts if they are given."""
        objective = self.objective if task is None else replace(self.objective, task=task)
        state = self.engine.open(self.engine.resolve(objective, activations=False))
        try:
            operation = MeasureMasks(self.layout, masks)
            (outcome,) = self.engine.run([Work(state, operation)])
        finally:
            self.engine.close(state)
        operation.check(outcome)
        figures: list[MaskFigures] = outcome  # type: ignore[assignment]
        return figures
