"""What a picture of circuits or edge scores shows, as plain data: the page and the SVG are drawn from it.

A picture has one side, or two that are compared. Each side ranks its edges by the size of their score,
largest first; edges that were never measured come last. "n edges" means the first n of each side.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from pahq_client import checks, formatting
from pahq_client.circuit import Circuit
from pahq_client.curve import Curve
from pahq_client.display.layout import Layout, Router, arrange
from pahq_client.errors import InvalidRequest
from pahq_client.formatting import one_line
from pahq_client.graph import Edge, Graph
from pahq_client.results import mapping
from pahq_client.scores import EdgeScores
from pahq_client.selection import ranking

Result: TypeAlias = Circuit | EdgeScores

# The most edges that a picture takes: more are slow to draw, and nothing can be told from them.
MOST_EDGES = 2000
# How many edges of scores are shown at first.
_FIRST_SHOWN = 100
# A circuit whose groups of shared keys feed many heads has more curves than edges.
_MOST_CURVES = 50_000
_MOST_PROMPTS = 8


@dataclass(frozen=True)
class Side:
    """One result in a picture.

    Args:
        name: what to call it, for example ``ioi on demo``.
        method: the method that found it; empty if it is not known.
        measures: the name of its metric.
        points: what the metric is known to be: (number of edges, value, faithfulness or None) by number.
        facts: what is known of the result, as (name, value), for people.
        warnings: what may mislead about it.
        prompts: some prompts of its task, as (clean, corrupted or empty), if the result holds them.
        drawn: how many of its edges are in the picture.
        edges: how many edges the result has.
        graph_edges: how many edges the graph has.
        start: how many edges to show at first.
        partial: whether its job did not come to its end.
        order: what edges are ordered by, for people.
    """

    name: str
    method: str
    measures: str
    points: tuple[tuple[int, float, float | None], ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    prompts: tuple[tuple[str, str], ...]
    drawn: int
    edges: int
    graph_edges: int
    start: int
    partial: bool
    order: str


@dataclass(frozen=True)
class PictureEdge:
    """An edge of a picture.

    Args:
        name: its name, for example ``a0.h1->a5.g1<k>``.
        source: the node that it leaves.
        ends: the nodes that it enters; several where heads share the receiver.
        kind: ``q``, ``k``, ``v``, ``mlp`` or ``logits``.
        scores: its score on every side; None where it was not measured.
        ranks: its place among the edges of every side, from 0; None where it is not one of them.
        share: the size of its score by the largest of its side, from 0 to 1; the larger one of two sides.
    """

    name: str
    source: str
    ends: tuple[str, ...]
    kind: str
    scores: tuple[float | None, ...]
    ranks: tuple[int | None, ...]
    share: float

    @property
    def score(self) -> float | None:
        """The score that sign and width show: that of the first side which measured the edge."""
        return next((score for score in self.scores if score is not None), None)

    @property
    def rank(self) -> int:
        """The number of edges to show, less one, from which on the edge is in the picture."""
        return min(rank for rank in self.ranks if rank is not None)


@dataclass(frozen=True)
class Picture:
    """A picture of one result, or of two that are compared; edges are sorted by rank."""

    graph: Graph
    sides: tuple[Side, ...]
    edges: tuple[PictureEdge, ...]

    def layout(self) -> Layout:
        """Places the nodes of all edges."""
        names = {name for edge in self.edges for name in (edge.source, *edge.ends)}
        return arrange({"input", "logits", *names}, self.graph)

    def paths(self, layout: Layout) -> list[str]:
        """The curve of every edge, in the language of SVG."""
        router = Router(layout)
        return [router.path(edge.source, edge.ends, edge.kind) for edge in self.edges]


@dataclass(frozen=True)
class _Ranked:
    """The edges of a side that are drawn, by rank, and how to look up the score of any edge."""

    edges: list[Edge]
    score: Callable[[Edge], float | None]


def picture(
    result: Result,
    other: Result | None = None,
    *,
    names: Iterable[str] = (),
    curve: Curve | None = None,
    most: int = MOST_EDGES,
) -> Picture:
    """Makes the picture of a result, or of two.

    Args:
        result: a circuit or edge scores.
        other: what to compare it with.
        names: what to call the results; by default their task and model, and their method where these are the
            same.
        curve: what the metric is for growing numbers of edges of the first result, which has scores.
        most: the most edges; those with the largest scores are taken, half of them from each of two results.

    Raises:
        InvalidRequest: one is neither circuit nor scores, they belong to different graphs, the curve is not
            that of the largest of these scores, there is not one name for each, or so many heads share keys
            that the edges cannot be drawn.
    """
    results = [result] if other is None else [result, other]
    for field, found in zip(("result", "other"), results, strict=False):
        if not isinstance(found, Circuit | EdgeScores):
            detail = f"must be a Circuit or EdgeScores, got {type(found).__name__}"
            raise InvalidRequest(field, f"{detail}; read a file with Circuit.load or EdgeScores.load")
    if other is not None and not result.graph.same_as(other.graph):
        raise InvalidRequest("other", f"belongs to another graph: {other.graph}, not {result.graph}")
    if curve is not None:
        _check_curve(curve, result)
    limit = max(most // len(results), 1)
    ranked = [_ranked(found, limit) for found in results]
    called = _checked_names(names, len(results)) or tuple(_name(found) for found in results)
    if len(set(called)) < len(called) and all(map(_method, results)):
        called = tuple(f"{name}, {_method(found)}" for name, found in zip(called, results, strict=True))
    if len(set(called)) < len(called):
        called = tuple(f"{letter}: {name}" for letter, name in zip("AB", called, strict=False))
    sides = [
        _side(found, name, len(rank.edges), curve if found is result else None)
        for found, name, rank in zip(results, called, ranked, strict=True)
    ]
    return Picture(result.graph, tuple(sides), tuple(_edges(ranked, result.graph)))


def _checked_names(names: object, count: int) -> tuple[str, ...]:
    given = tuple(checks.text(f"names[{i}]", name) for i, name in enumerate(checks.items("names", names)))
    if given and len(given) != count:
        raise InvalidRequest("names", f"must be one for each of {count} results, got {len(given)}")
    return given


def _check_curve(curve: object, result: Result) -> None:
    """Refuses a curve that would show the figures of other edges than the picture does."""
    if not isinstance(curve, Curve):
        raise InvalidRequest("curve", f"must be a Curve, got {type(curve).__name__}")
    if not isinstance(result, EdgeScores):
        raise InvalidRequest("curve", "is for scores, not for a circuit")
    for name in ("method", "metric"):
        theirs, ours = getattr(curve, name), getattr(result, name)
        if theirs and ours and theirs != ours:
            raise InvalidRequest("curve", f"is of the {name} {theirs!r}, the scores are of {ours!r}")
    if curve.selection not in ("", "top absolute"):
        detail = f"is of edges chosen by {curve.selection!r}; a picture shows those of 'top absolute'"
        raise InvalidRequest("curve", detail)


def _ranked(result: Result, limit: int) -> _Ranked:
    if isinstance(result, EdgeScores):
        return _ranked_scores(result, limit)
    edges = [Edge(edge.source, edge.target, _finite(edge.score)) for edge in result.edges]
    edges.sort(key=lambda edge: -1.0 if edge.score is None else abs(edge.score), reverse=True)  # ties stay
    scores = {str(edge): edge.score for edge in edges}
    return _Ranked(edges[:limit], lambda edge: scores.get(str(edge)))


def _ranked_scores(result: EdgeScores, limit: int) -> _Ranked:
    index, scores = result.index, result.scores
    order = ranking(scores, "absolute")[:limit]
    ends = zip(index.edges(order), scores[order].tolist(), strict=True)

    def score(edge: Edge) -> float | None:
        number = index.find(edge.source, edge.target)
        return None if number is None else float(scores[number])

    return _Ranked([Edge(source, target, size) for (source, target), size in ends], score)


def _edges(ranked: list[_Ranked], graph: Graph) -> list[PictureEdge]:
    """The edges of all sides, by rank; those of one rank in the order of the sides."""
    drawn: dict[str, Edge] = {}
    ranks: list[dict[str, int]] = [{} for _ in ranked]
    for side, found in zip(ranks, ranked, strict=True):
        for rank, edge in enumerate(found.edges):
            side.setdefault(str(edge), rank)
            drawn[str(edge)] = edge
    largest = [abs(found.edges[0].score or 0.0) if found.edges else 0.0 for found in ranked]
    living = _living_heads(drawn.values())
    edges: list[PictureEdge] = []
    curves = 0
    for name, edge in drawn.items():
        nodes = _fed(edge, graph, living)
        scores = tuple(found.score(edge) for found in ranked)
        sizes = [abs(score) / most for score, most in zip(scores, largest, strict=True) if score and most]
        places = tuple(side.get(name) for side in ranks)
        share = max(sizes, default=0.0)
        edges.append(PictureEdge(name, edge.source, nodes, edge.kind, scores, places, share))
        curves += len(nodes)
        if curves > _MOST_CURVES:
            detail = f"needs more than {_MOST_CURVES} curves to be drawn; take one with fewer edges"
            raise InvalidRequest("circuit", detail)
    return sorted(edges, key=lambda edge: edge.rank)


def _living_heads(edges: Iterable[Edge]) -> Mapping[int, list[int]]:
    """The heads of each layer that something reads."""
    living: dict[int, set[int]] = defaultdict(set)
    for edge in edges:
        if edge.source_layer is not None and edge.source_head is not None:
            living[edge.source_layer].add(edge.source_head)
    return {layer: sorted(heads) for layer, heads in living.items()}


def _fed(edge: Edge, graph: Graph, living: Mapping[int, list[int]]) -> tuple[str, ...]:
    """The nodes that an edge leads to.

    Of the heads that share keys and values only those that something reads are drawn. Where there is none,
    the group is a node of its own.
    """
    if edge.group is None or edge.layer is None:
        return graph.senders_behind(edge.target) or (edge.target,)
    group = graph.group_heads(edge.group)
    heads = tuple(f"a{edge.layer}.h{head}" for head in living.get(edge.layer, ()) if head in group)
    return heads or (f"a{edge.layer}.g{edge.group}",)


def _side(result: Result, name: str, drawn: int, curve: Curve | None) -> Side:
    edges = _num_edges(result)
    return Side(
        name=one_line(name),
        method=_method(result),
        measures=one_line(_metric(result)) or "metric",
        points=tuple(_points(result, curve)),
        facts=tuple((one_line(key), one_line(str(value))) for key, value in _facts(result)),
        warnings=tuple(map(one_line, result.warnings)),
        prompts=tuple(_prompts(result)),
        drawn=drawn,
        edges=edges,
        graph_edges=result.num_edges_total if isinstance(result, Circuit) else edges,
        start=drawn if isinstance(result, Circuit) else min(drawn, _FIRST_SHOWN),
        partial=result.partial,
        order=_order(result),
    )


def _order(result: Result) -> str:
    """What edges are ordered by. A search scores each edge in the circuit of its own test."""
    if isinstance(result, Circuit) and result.verdicts and result.parameters.get("method") == "acdc":
        return "by the score of each edge's own test, which does not rank edges"
    return "largest score first"


def _num_edges(result: Result) -> int:
    return len(result.edges) if isinstance(result, Circuit) else len(result.scores)


def _metric(result: Result) -> str:
    return result.metric.name if isinstance(result, Circuit) else result.metric


def _points(result: Result, curve: Curve | None) -> Iterator[tuple[int, float, float | None]]:
    empty = result.metric.empty if isinstance(result, Circuit) else result.empty
    full = result.metric.full if isinstance(result, Circuit) else result.full
    has_way = math.isfinite(full - empty) and full != empty
    if math.isfinite(empty):
        yield 0, empty, 0.0 if has_way else None
    if curve is not None:
        points = zip(curve.num_edges, curve.values, curve.faithfulness, strict=True)
        yield from (point for point in points if 0 < point[0] < _num_edges(result))
    if isinstance(result, Circuit) and math.isfinite(result.metric.value) and result.edges:
        yield len(result.edges), result.metric.value, result.faithfulness
    elif isinstance(result, EdgeScores) and math.isfinite(full):
        yield len(result.scores), full, 1.0 if has_way else None


def _name(result: Result) -> str:
    task, model = mapping(result.run.get("task")).get("name"), result.run.get("model")
    words = [str(task)] if task else []
    words += [f"on {model}" if words else str(model)] if model else []
    return " ".join(words) or ("circuit" if isinstance(result, Circuit) else "edge scores")


def _method(result: Result) -> str:
    if isinstance(result, EdgeScores):
        return one_line(result.method)
    method, threshold = result.parameters.get("method"), _threshold(result)
    if not isinstance(method, str):
        return ""
    return one_line(method if threshold is None else f"{method}, threshold {threshold:g}")


def _threshold(circuit: Circuit) -> float | None:
    """The threshold that a search has found, else the one that was asked for."""
    asked = circuit.parameters.get("threshold")
    return asked if circuit.threshold is None and isinstance(asked, float) else circuit.threshold


def _facts(result: Result) -> Iterator[tuple[str, object]]:
    run, request = result.run, result.request
    yield from _known(("model", run.get("model")), ("task", formatting.task(run.get("task"))))
    if isinstance(result, Circuit):
        yield "edges", f"{len(result.edges):,} of {result.num_edges_total:,}"
        if result.partial:
            yield "partial", f"{len(result.undecided):,} edges were not decided"
        metric = result.metric
        values = (("circuit", metric.value), ("full model", metric.full), ("empty circuit", metric.empty))
        known = [f"{value:.4g} ({what})" for what, value in values if math.isfinite(value)]
        yield metric.name or "metric", ", ".join(known) or "not measured"
        if result.faithfulness is not None:
            yield "faithfulness", f"{result.faithfulness:.1%}"
        if result.num_evaluations:
            yield "evaluations", f"{result.num_evaluations:,}"
        threshold = _threshold(result)
        if threshold is not None:
            yield "threshold", f"{threshold:g}"
    else:
        yield "edges", f"{len(result.scores):,}"
        yield "method", result.method
        ends = (("full model", result.full), ("empty circuit", result.empty))
        known = [f"{value:.4g} ({what})" for what, value in ends if math.isfinite(value)]
        yield result.metric or "metric", ", ".join(known) or "not measured"
    shown = {"metric", "threshold" if isinstance(result, Circuit) else "method"}
    for key, value in sorted(result.parameters.items(), key=lambda item: str(item[0])):
        if key not in shown and isinstance(value, str | int | float):
            yield str(key).replace("_", " "), value
    yield from _known(
        ("precision", request.get("policy")),
        ("revision", result.model_revision[:12]),
        ("made by", f"PAHQ {request['version']}" if request.get("version") else None),
        ("ended", run.get("ended")),
    )


def _known(*facts: tuple[str, object]) -> Iterator[tuple[str, object]]:
    return ((key, value) for key, value in facts if isinstance(value, str) and value)


def _prompts(result: Result) -> Iterator[tuple[str, str]]:
    prompts = mapping(result.run.get("prompts"))
    clean, corrupted = (prompts.get(key) for key in ("clean", "corrupted"))
    if not isinstance(clean, list):
        return
    others = corrupted if isinstance(corrupted, list) else []
    for index, text in enumerate(clean[:_MOST_PROMPTS]):
        yield one_line(str(text)), one_line(str(others[index])) if index < len(others) else ""


def _finite(score: float | None) -> float | None:
    return None if score is None or not math.isfinite(score) else float(score)
