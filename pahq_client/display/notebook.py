"""Shows circuits and edge scores in notebooks: a summary, a picture, and a table of the largest edges.

The picture is an image of its own, in which no script can run: notebooks show it whether they are trusted or
not.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from pahq_client.circuit import Circuit
from pahq_client.display import circuits, svg
from pahq_client.display.picture import Result, picture
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line
from pahq_client.graph import Edge
from pahq_client.scores import EdgeScores
from pahq_client.selection import ranking

_ROWS = 50
# Edges of the picture: notebooks keep it, so that it must not be large.
_DRAWN = 150
_WIDTH = "min(100%, 760px)"


def circuit_html(circuit: Circuit) -> str:
    """Shows a circuit."""
    ranked = sorted(circuit.edges, key=_weight, reverse=True)
    head = f"<p><b>Circuit</b>: {escape(circuits.summary(circuit))}</p>"
    return f"{head}{_warnings(circuit)}{_image(circuit)}{_table(ranked[:_ROWS], len(ranked))}"


def scores_html(scores: EdgeScores) -> str:
    """Shows edge scores."""
    order = ranking(scores.scores, "absolute")[:_ROWS]
    ends = zip(scores.index.edges(order), scores.scores[order].tolist(), strict=True)
    edges = [Edge(source, target, score) for (source, target), score in ends]
    head = f"<p><b>Edge scores</b>: {escape(circuits.summarize_scores(scores))}</p>"
    return f"{head}{_warnings(scores)}{_image(scores)}{_table(edges, len(scores.scores))}"


def _warnings(result: Result) -> str:
    return "".join(f"<p><b>Warning</b>: {escape(one_line(text))}</p>" for text in result.warnings)


def _image(result: Result) -> str:
    try:
        shown = picture(result, most=_DRAWN)
    except InvalidRequest:  # too large to be drawn
        return ""
    drawn, edges = len(shown.edges), shown.sides[0].edges
    if not drawn:
        return ""
    source = base64.b64encode(svg.to_svg(shown, titles=False).encode("utf-8")).decode("ascii")
    words = "Picture of the circuit" if drawn == edges else f"Picture of the {drawn} largest of {edges} edges"
    note = "" if drawn == edges else f"<p>{words}; to_html() writes a page with more of them.</p>"
    return f'<img alt="{words}" style="width: {_WIDTH}" src="data:image/svg+xml;base64,{source}">{note}'


def _table(edges: Sequence[Edge], total: int) -> str:
    rows = "".join(map(_row, edges))
    rest = f"<p>… and {total - len(edges)} more</p>" if total > len(edges) else ""
    table = f"<table><tr><th>edge</th><th>score</th></tr>{rows}</table>"
    return f"<details><summary>Edges by score</summary>{table}{rest}</details>"


def _weight(edge: Edge) -> float:
    return float("-inf") if edge.score is None or math.isnan(edge.score) else abs(edge.score)


def _row(edge: Edge) -> str:
    score = "" if edge.score is None else f"{edge.score:.6g}"
    return f"<tr><td><code>{escape(one_line(str(edge)))}</code></td><td>{score}</td></tr>"
