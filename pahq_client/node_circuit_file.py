"""Node circuits as an artifact, and as a file: the artifact of a job with the job's provenance.

A file is a safetensors file with three arrays: ``kept`` and ``trained``, one bit per node (uint8, the lowest
bit first), and ``log_alpha`` (float32). Nodes go kind by kind in the order of `node_circuit.KINDS`, each kind
layer by layer. The metadata is that of files of scores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pahq_client.artifact_file import layout_of, metadata, reading
from pahq_client.circuit_file import JsonObject, graph_object, read_graph, read_provenance
from pahq_client.errors import InvalidNodeCircuitFile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pahq_client.node_circuit import NodeCircuit, NodeFigures, NodeLayout

KIND, VERSION = "node_circuit", 1
# More nodes than any model has that a server could prune.
MOST_NODES = 1 << 28
_FIGURES = ("figures", "trained_figures", "full")
_NUMBERS = ("kl", "exact_match", "logit_difference", "accuracy")


def encode(circuit: NodeCircuit, origin: str) -> bytes:
    """The file of a node circuit.

    Args:
        circuit: the circuit.
        origin: what to name in errors.

    Raises:
        InvalidNodeCircuitFile: the provenance holds what JSON cannot express.
    """
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
        "provenance": dict(circuit.provenance),
    }
    arrays: dict[str, NDArray[Any]] = {
        name: packed(masks) for name, masks in (("kept", circuit.kept), ("trained", circuit.trained))
    }
    arrays["log_alpha"] = circuit.log_alpha
    return save(arrays, metadata(layout, "node circuit", origin, InvalidNodeCircuitFile))


def packed(masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Returns nodes as bits, kind by kind, the lowest bit of the first byte first."""
    import numpy as np

    return np.packbits(np.concatenate([mask.ravel() for mask in masks.values()]), bitorder="little")


def decode(data: bytes, origin: str) -> NodeCircuit:
    """The node circuit of a file.

    Raises:
        InvalidNodeCircuitFile: it is not such a file, is damaged, or has an unknown version.
    """
    # Imported here, since it imports this module.
    from pahq_client import artifacts
    from pahq_client.node_circuit import NodeCircuit

    with reading("a node circuit", origin, InvalidNodeCircuitFile):
        layout = layout_of(data)
        if layout.get("kind", str) != KIND:
            raise ValueError(f"it holds an artifact of kind {layout.get('kind', str)!r}, not a node circuit")
        provenance, partial = read_provenance(layout.get("provenance", dict)), layout.get("partial", bool)
        found = artifacts.decode(KIND, layout.get("version", int), data, provenance, partial)
    assert isinstance(found, NodeCircuit)
    return found


def is_node_circuit_file(data: bytes) -> bool:
    """Whether bytes look like a file of a node circuit, whatever their state."""
    try:
        return bool(layout_of(data).get("kind", str) == KIND)
    except (ValueError, OverflowError):
        return False


def read(
    layout: JsonObject,
    arrays: Mapping[str, NDArray[Any]],
    provenance: Mapping[str, Any],
    partial: bool,
) -> NodeCircuit:
    """Reads the node circuit of an artifact, or of a file.

    Raises ValueError for arrays or numbers that do not fit together.
    """
    from pahq_client.node_circuit import KINDS, NodeCircuit

    nodes, graph = _read_layout(layout), read_graph(layout.object("graph"))
    if (graph.layers, graph.heads, graph.mlps) != (nodes.layers, nodes.heads, nodes.d_mlp > 0):
        raise ValueError("its nodes and its graph are of different models")
    kinds = layout.get("kinds", list)
    if not all(kind in KINDS for kind in kinds):
        raise ValueError("it has kinds of nodes that this client does not know")
    log_alpha = arrays.get("log_alpha")
    if log_alpha is None or log_alpha.dtype != "float32" or log_alpha.shape != (nodes.size,):
        raise ValueError(f"its log_alpha are not {nodes.size} numbers")
    return NodeCircuit(
        nodes,
        graph,
        tuple(kinds),
        _masks(arrays, "kept", nodes),
        _masks(arrays, "trained", nodes),
        log_alpha,
        _read_figures(layout, "figures"),
        _read_figures(layout, "trained_figures"),
        _read_figures(layout, "full"),
        _read_parameters(layout),
        _number(layout, "stochastic_kl"),
        _number(layout, "budget"),
        _number(layout, "penalty"),
        layout.get("steps", int),
        layout.get("polished", bool),
        layout.get("repaired", bool),
        provenance,
        partial,
    )


def _read_layout(layout: JsonObject) -> NodeLayout:
    from pahq_client.node_circuit import NodeLayout

    own = layout.object("model_layout")
    found = NodeLayout(*(own.get(name, int) for name in ("layers", "heads", "d_head", "d_model", "d_mlp")))
    least = (found.layers, found.heads, found.d_head, found.d_model)
    if min(least) < 1 or found.d_mlp < 0 or not 0 < found.size <= MOST_NODES:
        raise ValueError("its numbers of nodes are not those of a model")
    return found


def _masks(arrays: Mapping[str, NDArray[Any]], name: str, layout: NodeLayout) -> dict[str, NDArray[np.bool_]]:
    import numpy as np

    bits = arrays.get(name)
    if bits is None or bits.dtype != "uint8" or bits.shape != ((layout.size + 7) // 8,):
        raise ValueError(f"its {name} nodes are not a bit for each of {layout.size}")
    every = np.unpackbits(bits, bitorder="little").astype(bool)
    if every[layout.size :].any():
        raise ValueError(f"its {name} nodes have bits beyond the last of {layout.size}")
    found, first = {}, 0
    for kind, count in layout.per_layer.items():
        last = first + layout.layers * count
        found[kind] = every[first:last].reshape(layout.layers, count)
        first = last
    return found


def _read_figures(layout: JsonObject, name: str) -> NodeFigures | None:
    from pahq_client.node_circuit import NodeFigures

    if layout.get(name, dict, type(None)) is None:
        return None
    own = layout.object(name)
    kl, exact_match, *optional = (_number(own, number) for number in _NUMBERS)
    if kl is None or exact_match is None:
        raise ValueError(f"its {name} are not complete")
    return NodeFigures(kl, exact_match, *optional)


def _read_parameters(layout: JsonObject) -> dict[str, int]:
    own = layout.object("kept_parameters")
    found = {name: own.get(name, int) for name in ("trained", "kept", "all")}
    if not all(0 <= found[name] <= found["all"] for name in found):
        raise ValueError("its numbers of parameters do not fit together")
    return found


def _number(own: JsonObject, name: str) -> float | None:
    value = own.get(name, int, float, type(None))
    if value is not None and not math.isfinite(value):
        raise ValueError(f"its {name} is not a number")
    return None if value is None else float(value)
