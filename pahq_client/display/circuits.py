"""Shows circuits and edge scores: as a networkx graph, for Graphviz, in one line."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from pahq_client import formatting
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line, printable
from pahq_client.graph import Edge, head_of, layer_of, node_kind, node_order

if TYPE_CHECKING:
    import networkx

    from pahq_client.circuit import Circuit
    from pahq_client.scores import EdgeScores

# More would take gigabytes, in networkx above all.
MOST_ARROWS = 5_000_000
# Red, green and blue of the least and the largest score, and of those below zero.
_LIGHT, _DARK = (178, 200, 223), (8, 48, 107)
_LIGHT_RED, _DARK_RED = (244, 190, 180), (165, 15, 21)


class Arrow(NamedTuple):
    """One arrow between nodes. ``receiver`` is q, k, v, mlp or logits."""

    source: str
    target: str
    receiver: str
    edge: Edge


def arrows(circuit: Circuit) -> Iterator[Arrow]:
    """The arrows of a circuit: one per edge, or one per head that a shared k or v receiver feeds.

    Raises:
        InvalidRequest: there are more than can be drawn or kept as a graph here.
    """
    fed = sum(len(circuit.graph.group_heads(0)) if ".g" in edge.target else 1 for edge in circuit.edges)
    if fed > MOST_ARROWS:
        detail = f"has {fed} arrows between nodes; a graph takes at most {MOST_ARROWS}"
        raise InvalidRequest("circuit", detail)
    return _arrows(circuit)


def _arrows(circuit: Circuit) -> Iterator[Arrow]:
    for edge in circuit.edges:
        for target in circuit.graph.senders_behind(edge.target) or (edge.target,):
            yield Arrow(edge.source, target, edge.kind, edge)


def to_networkx(circuit: Circuit) -> networkx.MultiDiGraph[str]:
    """The circuit as a graph whose nodes are the senders and ``logits``.

    Several arrows may join two nodes, since a head reads through q, k and v apart: hence a
    MultiDiGraph. The edge ``a0.h1->a5.h5<q>`` is the arrow ``("a0.h1", "a5.h5", "q")`` with the attributes
    ``edge`` (its name), ``receiver`` (``q``, ``k``, ``v``, ``mlp`` or ``logits``) and, if it was tested,
    ``score``. A k or v receiver that several heads share gives one arrow per head, with one ``edge``.

    Nodes have the attributes ``kind`` (``input``, ``head``, ``mlp`` or ``logits``), ``layer`` and ``head``
    where there is one, and ``score``: the sum of the scores of their arrows, without signs.
    """
    import networkx  # takes longer to import than everything else here together

    graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph()
    totals: dict[str, float] = defaultdict(float)
    for source, target, receiver, edge in arrows(circuit):
        score = {} if edge.score is None else {"score": edge.score}
        graph.add_edge(source, target, key=receiver, edge=str(edge), receiver=receiver, **score)
        for node in (source, target):
            totals[node] += abs(edge.score or 0.0)
    for node, total in totals.items():
        graph.nodes[node].update(_attributes(node), score=total)
    return graph


def _attributes(node: str) -> dict[str, str | int]:
    """The kind of a node, and its layer and head as far as it has them."""
    place = {"layer": layer_of(node), "head": head_of(node)}
    return {"kind": node_kind(node), **{key: value for key, value in place.items() if value is not None}}


def to_graphml(circuit: Circuit) -> str:
    """The circuit as GraphML, with the nodes, arrows and attributes of `to_networkx`.

    Each arrow's id is its name, for example ``a0.h1->a5.h5<q>``; into a shared key, that of one head.
    """
    import networkx

    graph = to_networkx(circuit)
    for source, target, receiver, attributes in graph.edges(keys=True, data=True):
        attributes["id"] = f"{source}->{target}" + (f"<{receiver}>" if receiver in ("q", "k", "v") else "")
    return "\n".join([*networkx.generate_graphml(graph, edge_id_from_attribute="id"), ""])


def to_dot(circuit: Circuit) -> str:
    """The circuit in Graphviz's language.

    Nodes of a layer stand side by side, layers one above the other, the input at the bottom. The larger the
    score of an edge, the wider and darker its arrow; one that makes the metric better when it goes is red,
    one that was never tested is dashed.
    """
    drawn = list(arrows(circuit))
    nodes = sorted({node for arrow in drawn for node in arrow[:2]}, key=node_order)
    ranks: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        ranks.setdefault(node_order(node)[:2], []).append(_quote(node))
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    lines += [f"  {{ rank=same; {'; '.join(names)}; }}" for names in ranks.values()]
    # Graphviz orders ranks by arrows only: invisible ones join those of successive layers.
    first = [names[0] for names in ranks.values()]
    lines += [f"  {low} -> {high} [style=invis];" for low, high in itertools.pairwise(first)]
    most = max((abs(score) for edge in circuit.edges if (score := _score(edge)) is not None), default=0.0)
    lines += [_dot_arrow(arrow, most) for arrow in drawn]
    return "\n".join([*lines, "}", ""])


def _dot_arrow(arrow: Arrow, most: float) -> str:
    label = arrow.receiver if arrow.receiver in ("q", "k", "v") else ""
    score = _score(arrow.edge)
    shown = "untested" if score is None else f"{score:.6g}"
    texts = f"label={_quote(label)}, tooltip={_quote(f'{arrow.edge} {shown}')}"
    return f"  {_quote(arrow.source)} -> {_quote(arrow.target)} [{texts}, {_dot_style(score, most)}];"


def _dot_style(score: float | None, most: float) -> str:
    """Width and colour of an arrow. By square roots: most scores are far below the largest."""
    if score is None:
        return 'penwidth=1, color="#999999", style=dashed'
    share = math.sqrt(abs(score) / most) if most else 0.0
    light, dark = (_LIGHT, _DARK) if score >= 0 else (_LIGHT_RED, _DARK_RED)
    mixed = (round(low + (high - low) * share) for low, high in zip(light, dark, strict=True))
    return f'penwidth={0.5 + 4.5 * share:.2f}, color="#{bytes(mixed).hex()}"'


def _score(edge: Edge) -> float | None:
    """The score; None where there is none, or none that can be drawn."""
    return edge.score if edge.score is not None and math.isfinite(edge.score) else None


def _quote(text: str) -> str:
    # A picture holds no character that is not printable.
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")
    return f'"{escaped}"'


def summary(circuit: Circuit) -> str:
    """Describes a circuit in one line."""
    size = f"{len(circuit.edges)} of {circuit.num_edges_total} edges"
    paths = f"{len(circuit.on_paths)} on a path from input to logits"
    measured = [f"{one_line(circuit.metric.name)}={circuit.metric_value:.6g}"]
    measured.append(formatting.faithfulness(circuit.faithfulness))
    if not circuit.is_measured:
        name = one_line(circuit.metric.name)
        measured = [f"{name} not measured" if name else "not measured"]
    evaluations = f"{circuit.num_evaluations} evaluations"
    if circuit.partial:
        undecided = len(circuit.undecided)
        size = f"partial: {circuit.num_edges_total - undecided} of {circuit.num_edges_total} edges decided"
        kept = len(circuit.edges) - undecided
        parts = [size, f"{kept} of them kept", f"metric {one_line(circuit.metric.name)}", evaluations]
    else:
        parts = [size, paths, *measured, *([evaluations] if circuit.num_evaluations else [])]
    asked = _asked(circuit, circuit.threshold)
    return ", ".join([*parts, *asked, *formatting.count_warnings(circuit.warnings)])


def _asked(result: Circuit | EdgeScores, threshold: float | None = None) -> list[str]:
    """The model, what was asked for, and the threshold that was found, as far as they are known."""
    run, found = result.run, {} if threshold is None else {"threshold": threshold}
    known = {
        **result.parameters,
        **found,
        "model": run.get("model"),
        "operation": result.request.get("operation"),
        "task": formatting.task(run.get("task")) or None,
    }
    names = ("model", "task", "operation", "method", "threshold")
    return [one_line(f"{key}={known[key]!r}") for key in names if known.get(key) is not None]


def summarize_scores(scores: EdgeScores) -> str:
    """Describes edge scores in one line."""
    head = ["partial"] if scores.partial else []
    size, metric = f"{len(scores.scores)} edges", f"metric={one_line(scores.metric)!r}"
    ends = f"full={scores.full:.6g}, empty={scores.empty:.6g}"
    asked = [part for part in _asked(scores) if not part.startswith("method=")]
    method = f"method={one_line(scores.method)!r}"
    return ", ".join([*head, size, method, metric, ends, *asked, *formatting.count_warnings(scores.warnings)])
