"""Node circuits as an artifact, and as a file: the artifact of a job with the job's provenance.

A file is a safetensors file with three arrays: ``kept`` and ``trained``, one bit per node (uint8, the lowest
bit first), and ``log_alpha`` (float32). Nodes go kind by kind in the order of `node_layout.KINDS`, each kind
layer by layer. The metadata is that of files of scores. Servers are not trusted: what is read is a circuit of
the model that the layout describes, or refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pahq_client import artifact_file
from pahq_client.circuit_file import JsonObject, graph_object, read_graph
from pahq_client.errors import InvalidNodeCircuitFile
from pahq_client.node_layout import KINDS, NodeLayout, consistent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.node_circuit import NodeCircuit, NodeFigures

KIND, VERSION = "node_circuit", 1
# More nodes than any model has that a server could prune.
MOST_NODES = 1 << 28
# More weights and more steps of training than there can be: larger numbers come from damage or malice.
MOST_PARAMETERS, MOST_STEPS = 1 << 53, 1 << 31
_FIGURES = ("figures", "trained_figures", "full")
_NUMBERS = ("kl", "exact_match", "logit_difference", "accuracy")


def encode(circuit: NodeCircuit, origin: str, run: bool = True) -> bytes:
    """The file of a node circuit.

    Args:
        circuit: the circuit.
        origin: what to name in errors.
        run: whether to include ``provenance.run``.

    Raises:
        InvalidNodeCircuitFile: the provenance holds what JSON cannot express.
    """
    import numpy as np
    from safetensors.numpy import save

    layout = {
        "kind": KIND,
        "version": VERSION,
        "model_layout": asdict(circuit.layout),
        "graph": graph_object(circuit.graph),
        "kinds": list(circuit.kinds),
        **{name: None if (own := getattr(circuit, name)) is None else asdict(own) for name in _FIGURES},
        "kept_parameters": dict(circuit.kept_parameters),
        **{name: getattr(circuit, name) for name in ("stochastic_kl", "budget", "penalty", "steps")},
        **{name: getattr(circuit, name) for name in ("polished", "repaired", "partial")},
        "provenance": {part: value for part, value in circuit.provenance.items() if run or part != "run"},
    }
    arrays: dict[str, NDArray[Any]] = {
        "kept": packed(circuit.kept),
        "trained": packed(circuit.trained),
        "log_alpha": np.ascontiguousarray(circuit.log_alpha, np.float32),
    }
    return save(arrays, artifact_file.metadata(layout, "node circuit", origin, InvalidNodeCircuitFile))


def packed(nodes: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Returns a set of nodes as bits, the lowest bit of the first byte first.

    Args:
        nodes: bool, [layers, nodes of a layer], by kind.
    """
    import numpy as np

    return np.packbits(np.concatenate([nodes[kind].ravel() for kind in KINDS]), bitorder="little")


def decode(data: bytes, origin: str) -> NodeCircuit:
    """The node circuit of a file.

    Raises:
        InvalidNodeCircuitFile: it is not such a file, is damaged, or has an unknown version.
    """
    # Imported here, since it imports this module.
    from pahq_client.node_circuit import NodeCircuit

    return artifact_file.decode(data, KIND, NodeCircuit, "a node circuit", origin, InvalidNodeCircuitFile)


def read(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
    partial: bool,
) -> NodeCircuit:
    """Reads the node circuit of an artifact, or of a file.

    Raises ValueError for arrays or numbers that do not fit together.
    """
    import numpy as np

    from pahq_client.artifacts import array_of
    from pahq_client.node_circuit import NodeCircuit

    nodes, graph = _read_layout(layout), read_graph(layout.object("graph"))
    if (graph.layers, graph.heads, graph.mlps) != (nodes.layers, nodes.heads, nodes.d_mlp > 0):
        raise ValueError("its nodes and its graph are of different models")
    if graph.kv_receivers not in ("group", "query"):
        raise ValueError(f"the kv_receivers of its graph are {graph.kv_receivers[:100]!r}")
    if not 1 <= graph.kv_heads <= graph.heads or graph.heads % graph.kv_heads:
        raise ValueError(f"{graph.kv_heads} key/value heads do not serve {graph.heads} heads")
    log_alpha = array_of(arrays, "log_alpha", "float32", nodes.size)
    if not np.isfinite(log_alpha).all():
        raise ValueError("'log_alpha' holds a number that is not finite")
    kinds = _read_kinds(layout, nodes)
    kept, trained = (_read_nodes(arrays, name, nodes) for name in ("kept", "trained"))
    if (trained != _opened(nodes, kinds, log_alpha > 0)).any():
        raise ValueError("its trained nodes are not those whose log_alpha is above 0")
    if (kept != _opened(nodes, kinds, kept)).any():
        raise ValueError("its kept nodes are no circuit, or lack some of a kind that was not pruned")
    found = NodeCircuit(
        layout=nodes,
        graph=graph,
        kinds=kinds,
        kept=nodes.split(kept),
        trained=nodes.split(trained),
        log_alpha=log_alpha,
        figures=_read_figures(layout, "figures", partial),
        trained_figures=_read_figures(layout, "trained_figures", partial),
        full=_read_figures(layout, "full", partial),
        kept_parameters=_read_parameters(layout),
        stochastic_kl=_number(layout, "stochastic_kl"),
        budget=_positive(layout, "budget"),
        penalty=_positive(layout, "penalty"),
        steps=layout.get("steps", int),
        polished=layout.get("polished", bool),
        repaired=layout.get("repaired", bool),
        provenance=provenance,
        partial=partial,
    )
    _check(found)
    return found


def _check(found: NodeCircuit) -> None:
    """Refuses values that are right by themselves and do not fit together."""
    if (found.budget is None) == (found.penalty is None):
        raise ValueError("it has neither a budget nor a penalty, or both")
    if not 0 <= found.steps < MOST_STEPS:
        raise ValueError(f"it has {found.steps} steps of training")
    if found.repaired and found.budget is None:
        raise ValueError("it was repaired, and has no budget to be within")
    if not found.repaired:  # then nodes only went after training, in polishing
        for kind, kept in found.kept.items():
            trained = found.trained[kind]
            if (kept & ~trained).any() or (not found.polished and (kept != trained).any()):
                raise ValueError(f"its {kind} are others than training found, and nothing changed them")


def _read_layout(layout: JsonObject) -> NodeLayout:
    own = layout.object("model_layout")
    found = NodeLayout(*(own.get(name, int) for name in ("layers", "heads", "d_head", "d_model", "d_mlp")))
    least = (found.layers, found.heads, found.d_head, found.d_model)
    if min(least) < 1 or found.d_mlp < 0 or not 0 < found.size <= MOST_NODES:
        raise ValueError("its numbers of nodes are not those of a model")
    return found


def _read_kinds(layout: JsonObject, nodes: NodeLayout) -> tuple[str, ...]:
    kinds = layout.get("kinds", list)
    there = [kind for kind, count in nodes.per_layer.items() if count]
    if not kinds or not all(kind in there for kind in kinds) or len(set(kinds)) != len(kinds):
        raise ValueError("its kinds of nodes are not some of those that the model has, each once")
    return tuple(kinds)


def _read_nodes(arrays: Mapping[str, NDArray[Any]], name: str, layout: NodeLayout) -> NDArray[np.bool_]:
    import numpy as np

    from pahq_client.artifacts import array_of

    bits = array_of(arrays, name, "uint8", (layout.size + 7) // 8)
    every = np.unpackbits(bits, bitorder="little").view(bool)
    if every[layout.size :].any():
        raise ValueError(f"its {name} nodes have bits beyond the last of {layout.size}")
    every.flags.writeable = False
    return every[: layout.size]


def _opened(layout: NodeLayout, kinds: tuple[str, ...], nodes: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The circuit within a set of nodes, of which all are there whose kind was not pruned."""
    nodes = nodes.copy()
    for kind, part in layout.split(nodes).items():
        if kind not in kinds:
            part[:] = True
    return consistent(layout, nodes)


def _read_figures(layout: JsonObject, name: str, partial: bool) -> NodeFigures | None:
    from pahq_client.node_circuit import NodeFigures

    if layout.get(name, dict, type(None)) is None:
        if not partial:
            raise ValueError(f"it has no {name}")
        return None
    own = layout.object(name)
    kl, exact_match, *optional = (_number(own, number) for number in _NUMBERS)
    if kl is None or exact_match is None:
        raise ValueError(f"its {name} are not complete")
    return checked_figures(name, NodeFigures(kl, exact_match, *optional))


def checked_figures(name: str, figures: NodeFigures) -> NodeFigures:
    """Returns figures. Raises ValueError for numbers that cannot be what they are called."""
    numbers = [getattr(figures, number) for number in _NUMBERS]
    if not all(number is None or math.isfinite(number) for number in numbers):
        raise ValueError(f"its {name} hold a number that is not finite")
    if not all(share is None or 0 <= share <= 1 for share in (figures.exact_match, figures.accuracy)):
        raise ValueError(f"its {name} hold a share that is not from 0 to 1")
    if (figures.logit_difference is None) != (figures.accuracy is None):
        raise ValueError(f"its {name} are not complete")
    return figures


def _read_parameters(layout: JsonObject) -> dict[str, int]:
    own = layout.object("kept_parameters")
    found = {name: own.get(name, int) for name in ("trained", "kept", "all")}
    if not all(0 <= found[name] <= found["all"] <= MOST_PARAMETERS for name in found):
        raise ValueError("its numbers of parameters do not fit together")
    return found


def _number(own: JsonObject, name: str) -> float | None:
    value = own.get(name, int, float, type(None))
    return None if value is None else float(value)


def _positive(own: JsonObject, name: str) -> float | None:
    value = _number(own, name)
    if value is not None and not value > 0:
        raise ValueError(f"its {name} is {value:g}, not above 0")
    return value
