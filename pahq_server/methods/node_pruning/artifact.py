"""The artifact of kind ``node_circuit``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pahq_server.core.artifact import pack
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.pruning import Mask, MaskFigures, NodeKind, NodeLayout, parameters_of
from pahq_server.methods import warnings

KIND, VERSION = "node_circuit", 1


@dataclass(frozen=True)
class NodeCircuit:
    """A circuit of nodes, and how it was found.

    Args:
        kinds: that were pruned.
        steps: of training.
        budget: the most KL divergence that was allowed, in nats; None where a penalty was given.
        penalty: the weight of all penalties; None where there was a budget.
        log_alpha: of all gates after training: float32, [gates].
        trained: the binary circuit of these gates.
        kept: the circuit in the end.
        full, of_trained, of_kept: figures of the full model under the same precision, and of both circuits;
            None where they were not measured.
        stochastic_kl: mean KL divergence of the last steps, whose gates were random; None before the first.
        polished: whether all was tried that could go.
        repaired: whether gates were opened again, because the trained circuit was over the budget.
    """

    kinds: Sequence[NodeKind]
    steps: int
    budget: float | None
    penalty: float | None
    log_alpha: NDArray[np.float32]
    trained: Mask
    kept: Mask
    full: MaskFigures | None = None
    of_trained: MaskFigures | None = None
    of_kept: MaskFigures | None = None
    stochastic_kl: float | None = None
    polished: bool = False
    repaired: bool = False


def node_circuit_bytes(circuit: NodeCircuit, resolved: ResolvedObjective, layout: NodeLayout) -> bytes:
    """Packs a node circuit as an artifact."""
    every = np.ones(layout.size, dtype=bool)
    masks = {"trained": circuit.trained, "kept": circuit.kept, "all": every}
    header: dict[str, Any] = {
        "kind": KIND,
        "version": VERSION,
        "model_layout": asdict(layout),
        "graph": asdict(resolved.graph),
        "kinds": list(circuit.kinds),
        "metric": resolved.objective.metric,
        "steps": circuit.steps,
        "budget": circuit.budget,
        "penalty": circuit.penalty,
        "full": _figures(circuit.full),
        "trained_figures": _figures(circuit.of_trained),
        "figures": _figures(circuit.of_kept),
        "stochastic_kl": circuit.stochastic_kl,
        "polished": circuit.polished,
        "repaired": circuit.repaired,
        "kept_parameters": {
            name: parameters_of(layout, resolved.graph.kv_heads, resolved.gated_mlps, mask)
            for name, mask in masks.items()
        },
    }
    return pack(
        header,
        {
            "kept": np.packbits(circuit.kept, bitorder="little"),
            "trained": np.packbits(circuit.trained, bitorder="little"),
            "log_alpha": circuit.log_alpha.astype("<f4"),
        },
    )


def _figures(figures: MaskFigures | None) -> Mapping[str, float | None] | None:
    return None if figures is None else asdict(figures)


def of_full_model(resolved: ResolvedObjective, full: MaskFigures) -> Iterator[str]:
    """Yields warnings about a model that does not do the task, if that has answers and wrong answers."""
    if full.logit_difference is not None and full.accuracy is not None:
        count = len(resolved.task.metric_positions())
        yield from warnings.of_full_model(full.logit_difference, round(full.accuracy * count), count)
