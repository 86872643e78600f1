"""Circuits for people and for other tools: networkx, Graphviz, one line, a table for notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, NamedTuple

from pahq_client import words
from pahq_client.elements import Edge, Graph

if TYPE_CHECKING:
    import networkx

    from pahq_client.contents import CircuitContents

_ROWS = 50
_RECEIVER = re.compile(r"(a\d+)\.([hg])(\d+)<([qkv])>")
_NODE = re.compile(r"([am])(\d+)(?:\.h(\d+))?")


class Link(NamedTuple):
    """One arrow between nodes. ``receiver`` is q, k, v, mlp or logits."""

    source: str
    target: str
    receiver: str
    edge: Edge


def links(circuit: CircuitContents) -> Iterator[Link]:
    """The arrows of a circuit: one per edge, or one per head that a shared k or v receiver feeds."""
    for edge in circuit.edges:
        for target, receiver in _ends(edge.target, circuit.graph):
            yield Link(edge.source, target, receiver, edge)


def _ends(receiver: str, graph: Graph) -> list[tuple[str, str]]:
    match = _RECEIVER.fullmatch(receiver)
    if match is None:
        return [(receiver, "logits" if receiver == "logits" else "mlp")]
    layer, letter, unit, kind = match.groups()
    heads = graph.group_heads(int(unit)) if letter == "g" else (int(unit),)
    return [(f"{layer}.h{head}", kind) for head in heads]


def to_networkx(circuit: CircuitContents) -> networkx.MultiDiGraph[str]:
    """The circuit as a graph whose nodes are the senders and ``logits``.

    Several arrows may join two nodes, since a head reads through q, k and v apart: hence a
    MultiDiGraph. The edge ``a0.h1->a5.h5<q>`` is the arrow ``("a0.h1", "a5.h5", "q")`` with the attributes
    ``edge`` (its name), ``receiver`` (``q``, ``k``, ``v``, ``mlp`` or ``logits``) and, if it was tested,
    ``score``. A k or v receiver that several heads share gives one arrow per head, with one ``edge``.
    """
    import networkx  # takes longer to import than everything else here together

    graph: networkx.MultiDiGraph[str] = networkx.MultiDiGraph()
    for source, target, receiver, edge in links(circuit):
        score = {} if edge.score is None else {"score": edge.score}
        graph.add_edge(source, target, key=receiver, edge=str(edge), receiver=receiver, **score)
    return graph


def to_dot(circuit: CircuitContents) -> str:
    """The circuit in Graphviz's language; nodes of a layer stand side by side, the input at the bottom."""
    arrows = list(links(circuit))
    nodes = sorted({node for arrow in arrows for node in arrow[:2]}, key=_order)
    ranks: dict[tuple[int, int], list[str]] = {}
    for node in nodes:
        ranks.setdefault(_order(node)[:2], []).append(_quote(node))
    lines = ["digraph circuit {", "  rankdir=BT;", "  node [shape=box];"]
    lines += [f"  {{ rank=same; {'; '.join(names)}; }}" for names in ranks.values()]
    lines += [_dot_arrow(arrow) for arrow in arrows]
    return "\n".join([*lines, "}", ""])


def _dot_arrow(arrow: Link) -> str:
    label = arrow.receiver if arrow.receiver in ("q", "k", "v") else ""
    score = "untested" if arrow.edge.score is None else f"{arrow.edge.score:.6g}"
    attributes = f"label={_quote(label)}, tooltip={_quote(f'{arrow.edge} {score}')}"
    return f"  {_quote(arrow.source)} -> {_quote(arrow.target)} [{attributes}];"


def _order(node: str) -> tuple[int, int, int]:
    """Sorts nodes in the order in which the model computes them."""
    match = _NODE.fullmatch(node)
    if match is None:
        return (-1, 0, 0) if node == "input" else (1 << 30, 0, 0)
    return int(match[2]), int(match[1] == "m"), int(match[3] or 0)


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def summary(circuit: CircuitContents) -> str:
    """A circuit in one line."""
    run = circuit.provenance.get("run", {})
    task = words.task(run.get("task"))
    known = {**circuit.parameters, "model": run.get("model"), "task": task or None}
    asked = [
        f"{key}={known[key]!r}"
        for key in ("model", "task", "method", "threshold")
        if known.get(key) is not None
    ]
    size = f"{len(circuit.edges)} of {circuit.num_edges_total} edges"
    paths = f"{len(circuit.on_paths)} on a path from input to logits"
    metric = f"{circuit.metric.name}={circuit.metric_value:.6g}"
    faithfulness = words.faithfulness(circuit.faithfulness)
    evaluations = f"{circuit.num_evaluations} evaluations"
    told = words.count_warnings(circuit.warnings)
    return ", ".join([size, paths, metric, faithfulness, evaluations, *asked, *told])


def to_html(circuit: CircuitContents) -> str:
    """A summary and the edges that matter most, for notebooks."""
    ranked = sorted(circuit.edges, key=_weight, reverse=True)
    rows = "".join(_row(edge) for edge in ranked[:_ROWS])
    more = len(ranked) - _ROWS
    rest = f"<p>… and {more} more</p>" if more > 0 else ""
    head = f"<p><b>Circuit</b>: {escape(summary(circuit))}</p>"
    told = "".join(f"<p><b>Warning</b>: {escape(text)}</p>" for text in circuit.warnings)
    return f"{head}{told}<table><tr><th>edge</th><th>score</th></tr>{rows}</table>{rest}"


def _weight(edge: Edge) -> float:
    return float("-inf") if edge.score is None else edge.score


def _row(edge: Edge) -> str:
    score = "" if edge.score is None else f"{edge.score:.6g}"
    return f"<tr><td><code>{escape(str(edge))}</code></td><td>{score}</td></tr>"
