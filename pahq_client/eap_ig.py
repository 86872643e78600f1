"""Files of EAP-IG (https://github.com/hannamw/EAP-IG), which the evaluation of the MIB benchmark reads, too.

There are two forms of one content: JSON, which lists every edge with its score and whether it is in the
circuit, and ``.pt``, a dictionary of plain tensors with one row per sender and one column per receiver.

EAP-IG's graph has an MLP in every layer and a key and value receiver for every query head. Where heads share
keys and values (``kv_receivers="group"``), an edge into a shared receiver is written as one edge per head,
each with an equal part of the score: a shared receiver's gradient is the sum over the heads that it feeds.
Read back, the parts are summed; a shared edge is in the circuit if it is for every head, and an error says
where heads differ.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pahq_client import checks, files
from pahq_client.circuit_file import FORMAT, JsonObject, parse_json
from pahq_client.edge_index import EdgeIndex, edge_index
from pahq_client.errors import InvalidCircuitFile, InvalidRequest
from pahq_client.graph import Graph

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_KEYS = ("n_layers", "n_heads", "parallel_attn_mlp", "d_model")
_PT_KEYS = ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph")


@dataclass(frozen=True, eq=False)
class Content:
    """What a file of EAP-IG says of the edges of a graph.

    Args:
        graph: the graph; ``kv_receivers`` may be ``group``.
        d_model: width of the residual stream.
        scores: float64, shape [edges]; NaN where the file gives none.
        kept: whether each edge is in the circuit: bool, shape [edges].
    """

    graph: Graph
    d_model: int
    scores: NDArray[np.float64]
    kept: NDArray[np.bool_]


def export(content: Content, path: str | os.PathLike[str] | None) -> dict[str, Any] | None:
    """Writes a file: ``.pt`` for tensors, which needs torch, any other name for JSON.

    Args:
        content: what to write.
        path: where; None to return the JSON object instead.

    Raises:
        InvalidRequest: the path is none, the graph has no MLPs, or torch is missing.
        OSError: it cannot be written.
    """
    if path is None:
        return document(content)
    name = files.path_text("path", path)
    files.write(name, _tensors(content) if name.endswith(".pt") else json.dumps(document(content)).encode())
    return None


def document(content: Content) -> dict[str, Any]:
    """The JSON form: ``cfg``, ``nodes`` and ``edges``. Raises InvalidRequest if the graph has no MLPs."""
    content = _per_head(content)
    index = edge_index(content.graph)
    nodes = zip(index.senders, _nodes_kept(index, content.kept).tolist(), strict=True)
    values = zip(content.graph.edge_names(), content.scores.tolist(), content.kept.tolist(), strict=True)
    return {
        "cfg": _config(content),
        "nodes": {name: {"in_graph": kept} for name, kept in (*nodes, ("logits", True))},
        "edges": {name: {"score": score, "in_graph": kept} for name, score, kept in values},
    }


def read(source: str | os.PathLike[str] | Mapping[str, Any], graph: Graph | None) -> Content:
    """Reads a file or a JSON object.

    Args:
        source: path of a file, ``.pt`` for tensors, which needs torch; or what `document` returns.
        graph: the graph of the model, where its heads share keys and values; by default each has its own.

    Raises:
        InvalidCircuitFile: it is no file of EAP-IG, is damaged, has scores of neurons, does not belong to the
            graph, or heads that share a key or value differ in what is in the circuit.
        InvalidRequest: the path is none, or torch is missing.
        OSError: it cannot be read.
    """
    origin = "source" if isinstance(source, Mapping) else files.path_text("source", source)
    parse: Callable[[Any], Content]
    value: Any
    if isinstance(source, Mapping):
        parse, value = _parse_document, dict(source)
    elif origin.endswith(".pt"):
        parse, value = partial(_parse_tensors, _torch()), files.read(origin)
    else:
        parse, value = _parse_json, files.read(origin)
    try:
        content = parse(value)
        return content if graph is None else _of_graph(content, graph)
    except (ValueError, OverflowError, InvalidRequest) as error:
        raise InvalidCircuitFile(origin, f"not a readable file of EAP-IG: {error}") from None


def d_model_of(d_model: int | None, known: object) -> int:
    """The width of the model: as given, or as a file of EAP-IG said. Raises InvalidRequest if unknown."""
    if d_model is None:
        if isinstance(known, int):
            return known
        detail = "is not known here, and EAP-IG's files tell it: pass d_model=, as Client.models() shows it"
        raise InvalidRequest("d_model", detail)
    width = checks.integer("d_model", d_model)
    if width < 1:
        raise InvalidRequest("d_model", f"must be at least 1, got {width}")
    return width


def provenance_of(content: Content) -> dict[str, Any]:
    """The provenance of what was read."""
    return {"request": {"format": "eap-ig", "d_model": content.d_model}, "run": {}}


def _config(content: Content) -> dict[str, Any]:
    graph = content.graph
    return dict(zip(_KEYS, (graph.layers, graph.heads, graph.parallel, content.d_model), strict=True))


def _nodes_kept(index: EdgeIndex, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The senders that EAP-IG counts in: with an edge in and an edge out; ``input`` needs none in."""
    import numpy as np

    leaves = np.bincount(index.sender_of[kept], minlength=len(index.senders)) > 0
    entered = np.bincount(index.receiver_of[kept], minlength=len(index.receivers)) > 0
    read = np.array([not reads or entered[list(reads)].any() for reads in index.read_by])
    nodes: NDArray[np.bool_] = leaves & read
    return nodes


def _shared_edges(graph: Graph) -> tuple[Graph, NDArray[np.int64]]:
    """The graph with keys and values per head, and for each of its edges that of ``graph`` it is part of."""
    import numpy as np

    per_head = replace(graph, kv_receivers="query")
    index, shared = edge_index(per_head), edge_index(graph)
    # By the sender that reads a receiver and by the kind, which ends the receiver's name: q>, k>, v>.
    by_reader = {
        (reader, receiver[-2:]): number
        for number, (receiver, readers) in enumerate(zip(shared.receivers, shared.feeds, strict=True))
        for reader in readers or (-1,)
    }
    receivers = [
        by_reader[readers[0] if readers else -1, receiver[-2:]]
        for receiver, readers in zip(index.receivers, index.feeds, strict=True)
    ]
    of_edge = np.array(receivers, np.int64)[index.receiver_of]
    return per_head, shared.offsets[of_edge] + index.sender_of


def _per_head(content: Content) -> Content:
    """The content with a key and value receiver per head. Raises InvalidRequest for a graph without MLPs."""
    import numpy as np

    if not content.graph.mlps:
        raise InvalidRequest("graph", "has no MLPs: EAP-IG's graph has one in every layer")
    graph, shared = _shared_edges(content.graph)
    parts = np.bincount(shared, minlength=len(content.scores))[shared]
    return Content(graph, content.d_model, content.scores[shared] / parts, content.kept[shared])


def _of_graph(content: Content, graph: Graph) -> Content:
    """The content of a file on a given graph. Raises ValueError where they do not fit."""
    import numpy as np

    per_head, shared = _shared_edges(graph)
    if replace(content.graph, kv_heads=graph.kv_heads) != per_head:
        raise ValueError(f"it is of another graph ({content.graph}) than the given one ({graph})")
    scores = np.bincount(shared, content.scores, minlength=graph.num_edges).astype(np.float64)
    counts = np.bincount(shared, content.kept, minlength=graph.num_edges)
    all_of_it = np.bincount(shared, minlength=graph.num_edges)
    partly = np.flatnonzero((counts > 0) & (counts < all_of_it))
    if len(partly):
        name, more = edge_index(graph).name(int(partly[0])), len(partly) - 1
        raise ValueError(
            f"heads that share a key or value differ in what is in the circuit: {name} is in it for "
            f"{int(counts[partly[0]])} of {all_of_it[partly[0]]} heads, {more} other edges likewise. Read it "
            "with a graph whose kv_receivers are 'query'"
        )
    return Content(graph, content.d_model, scores, counts > 0)


def _parse_json(data: bytes) -> Content:
    value = parse_json(data)
    if isinstance(value, dict) and value.get("format") == FORMAT:
        raise ValueError("it holds a circuit of PAHQ: read it with Circuit.load")
    return _parse_document(value)


def _parse_document(value: Any) -> Content:
    import numpy as np

    top = JsonObject(value, "the file")
    graph, d_model = _graph(top.object("cfg"))
    index = edge_index(graph)
    for name, node in top.get("nodes", dict).items():
        if isinstance(node, dict) and "neurons" in node:
            raise ValueError(f"node {name!r} has neurons: only files whose circuits are of edges can be read")
    scores, kept = np.full(index.num_edges, np.nan), np.zeros(index.num_edges, bool)
    for name, entry in top.get("edges", dict).items():
        sender, _, receiver = name.partition("->")
        number = index.find(sender, receiver)
        if number is None:
            raise ValueError(f"{name!r} is no edge of its graph")
        edge = JsonObject(entry, f"edge {name}")
        kept[number] = edge.get("in_graph", bool) if "in_graph" in edge else False
        scores[number] = edge.optional_number("score") if "score" in edge else np.nan
    return Content(graph, d_model, scores, kept)


def _graph(config: JsonObject) -> tuple[Graph, int]:
    heads = config.get("n_heads", int)
    graph = Graph(
        layers=config.get("n_layers", int),
        heads=heads,
        kv_heads=heads,
        kv_receivers="query",
        parallel=config.get("parallel_attn_mlp", bool),
    )
    graph.check_listable()
    return graph, config.get("d_model", int)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        advice = "pip install '.[torch]' in a checkout of PAHQ, or use a name that ends in .json"
        detail = f"a .pt file needs torch: {advice}"
        raise InvalidRequest("path", detail) from None
    return torch


def _tensors(content: Content) -> bytes:
    """The ``.pt`` form: a dictionary of names and plain tensors, scores in float64."""
    import numpy as np

    torch = _torch()
    content = _per_head(content)
    index = edge_index(content.graph)
    shape = len(index.senders), len(index.receivers)
    scores, kept = np.zeros(shape), np.zeros(shape, bool)
    scores[index.sender_of, index.receiver_of] = content.scores
    kept[index.sender_of, index.receiver_of] = content.kept
    values = (
        _config(content),
        index.senders,
        index.receivers,
        torch.from_numpy(scores),
        torch.from_numpy(kept),
        torch.from_numpy(_nodes_kept(index, content.kept)),
    )
    file = io.BytesIO()
    torch.save(dict(zip(_PT_KEYS, values, strict=True)), file)
    return file.getvalue()


def _parse_tensors(torch: Any, data: bytes) -> Content:
    import pickle

    import numpy as np

    if data[:2] != b"PK":
        raise ValueError("it is not a .pt file as torch writes it since version 1.6")
    try:
        # Plain tensors, numbers and names only: nothing else is unpickled.
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"it holds more than plain tensors, or is damaged: {str(error)[:200]!r}") from None
    top = JsonObject(loaded, "the file")
    graph, d_model = _graph(top.object("cfg"))
    index = edge_index(graph)
    if "neurons_in_graph" in top:
        raise ValueError("it has neurons: only files whose circuits are of edges can be read")
    for key, names in (("src_nodes", index.senders), ("dst_nodes", index.receivers)):
        if top.get(key, list) != names:
            raise ValueError(f"its {key} are not those of its graph in EAP-IG's order")
    shape = [len(index.senders), len(index.receivers)]
    tensors = [top.get(key, torch.Tensor) for key in ("edges_scores", "edges_in_graph")]
    for tensor in tensors:
        if list(tensor.shape) != shape or tensor.is_sparse:
            raise ValueError(f"its tensors must have shape {shape}, got {list(tensor.shape)}")
    places = index.sender_of, index.receiver_of
    scores, kept = (tensor.detach().double().numpy()[places] for tensor in tensors)
    return Content(graph, d_model, scores.astype(np.float64), kept != 0)
