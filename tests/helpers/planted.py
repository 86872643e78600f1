"""Models with known nodes: planted and compiled circuits that may lie beside the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from helpers.shared import CASES
from pahq_server.core.pruning import Mask, NodeLayout
from pahq_server.core.task import PromptTask
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold
from pahq_server.models.loading import LoadedModel, load

NAMES = (
    "planted_induction_2l4h",
    "planted_induction_3l4h_mlp",
    "tracr_reverse",
    "tracr_xproportion",
    "gate_and",
    "gate_or",
)


@dataclass(frozen=True)
class PlantedCircuit:
    """A case with known nodes under one ablation.

    Args:
        name: of the case.
        ablation: "resample", "zero" or "mean".
        directory: of the case and its model.
        nodes: the heads and MLPs at the ends of the edges that are needed.
    """

    name: str
    ablation: str
    directory: Path
    nodes: frozenset[str]

    @property
    def task(self) -> PromptTask:
        case = self._case()
        positions = None if case["positions"] == "last" else tuple(case["positions"])
        clean, corrupted = (tuple(map(tuple, case[name])) for name in ("clean", "corrupted"))
        return PromptTask(clean, corrupted, positions=positions)

    def model(self) -> LoadedModel:
        """The folded model.

        A model with a single output has no distribution. It gets a second one that is always 0, so that the
        first one is the log odds of two tokens.
        """
        model = load(str(self.directory)).model
        return LoadedModel(fold(_with_two_outputs(model)), None, self.name)

    def found(self, nodes: frozenset[str]) -> bool:
        """Whether these are the known nodes. Of the two heads of ``gate_or`` either will do."""
        if self.name == "gate_or":
            return nodes in ({"a0.h0", "m0"}, {"a0.h1", "m0"})
        return nodes == self.nodes

    def _case(self) -> dict[str, object]:
        content: dict[str, object] = json.loads((self.directory / "case.json").read_text("utf-8"))
        return content


def planted_circuits() -> Iterator[PlantedCircuit]:
    """All that are here; none where the cases are absent."""
    for name in NAMES:
        path = CASES / name / "case.json"
        if not path.is_file():
            continue
        case = json.loads(path.read_text("utf-8"))
        for ablation in case["ablations"]:
            edges = next(run["edges"] for run in case["expected"] if run["ablation"] == ablation)
            yield PlantedCircuit(name, ablation, path.parent, nodes_of_edges(edges))


def nodes_of_edges(edges: Iterator[str] | list[str]) -> frozenset[str]:
    """The heads and MLPs at the ends of edges."""
    ends = {end.partition("<")[0] for edge in edges for end in edge.split("->")}
    return frozenset(ends - {"input", "logits"})


def nodes_of_mask(layout: NodeLayout, mask: Mask) -> frozenset[str]:
    """The heads and MLPs that a mask keeps."""
    of = layout.split(mask)
    heads = {f"a{layer}.h{head}" for layer, head in zip(*np.nonzero(of["heads"]), strict=True)}
    return frozenset(heads | {f"m{layer}" for layer in np.nonzero(of["mlp_blocks"])[0]})


def mask_of_nodes(layout: NodeLayout, nodes: frozenset[str]) -> Mask:
    """The mask that keeps heads and MLPs whole."""
    mask = np.zeros(layout.size, dtype=bool)
    of = layout.split(mask)
    neurons = of["attention_neurons"].reshape(layout.layers, layout.heads, layout.d_head)
    for node in nodes:
        layer, _, head = node[1:].partition(".h")
        index = int(layer)
        of["layers"][index] = True
        if head:
            of["attention_blocks"][index] = True
            of["heads"][index, int(head)] = neurons[index, int(head)] = True
        else:
            of["mlp_blocks"][index] = of["mlp_hidden"][index] = of["mlp_outputs"][index] = True
    return mask


def _with_two_outputs(model: Model) -> Model:
    weights = model.weights
    if weights.w_u.shape[1] > 1:
        return model
    bias = torch.zeros(1) if weights.b_u is None else weights.b_u
    wider = replace(
        weights,
        w_u=torch.cat([weights.w_u, torch.zeros_like(weights.w_u)], 1),
        b_u=torch.cat([bias, torch.zeros_like(bias)]),
    )
    return replace(model, architecture=replace(model.architecture, output_vocabulary=2), weights=wider)
