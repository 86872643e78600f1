"""Pictures as data, as SVG and in notebooks."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import math
import random
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pahq_client import Circuit, CircuitMetric, Edge, EdgeScores, Graph, InvalidRequest, Verdict
from pahq_client.curve import Curve
from pahq_client.display import palette
from pahq_client.display.layout import NODE_HEIGHT, Layout, arrange
from pahq_client.display.picture import MOST_EDGES, picture
from pahq_client.graph import node_order

GRAPH = Graph(layers=4, heads=6, kv_heads=2, kv_receivers="group", parallel=False)
SVG = "{http://www.w3.org/2000/svg}"


def found(edges: list[Edge], graph: Graph = GRAPH, **run: Any) -> Circuit:
    metric = CircuitMetric("kl_divergence", 0.5, 0.0, 5.0)
    return Circuit(tuple(edges), graph, metric, 9, graph.num_edges, provenance={"run": run})


def some(size: int, seed: int = 0, graph: Graph = GRAPH) -> list[Edge]:
    generator = random.Random(seed)
    return [Edge(*ends, generator.gauss(0, 1)) for ends in generator.sample(list(graph.edges()), size)]


def scores(graph: Graph = GRAPH, **options: Any) -> EdgeScores:
    values = np.random.default_rng(1).normal(size=graph.num_edges)
    return EdgeScores(values, graph, "eap", "logit_difference", -3.0, 1.0, **options)


def test_edges_are_ranked_by_size_and_untested_ones_come_last() -> None:
    edges = [
        Edge("input", "m0", 0.5),
        Edge("input", "m1"),
        Edge("m0", "logits", -2.0),
        Edge("m1", "logits", math.nan),
        Edge("m0", "m1", 0.5),
    ]
    shown = picture(found(edges))
    order = ["m0->logits", "input->m0", "m0->m1", "input->m1", "m1->logits"]
    assert [edge.name for edge in shown.edges] == order
    assert [edge.score for edge in shown.edges] == [-2.0, 0.5, 0.5, None, None]
    assert [edge.share for edge in shown.edges] == [1.0, 0.25, 0.25, 0.0, 0.0]
    assert [edge.rank for edge in shown.edges] == [0, 1, 2, 3, 4]
    assert [edge.kind for edge in shown.edges] == ["logits", "mlp", "mlp", "mlp", "logits"]


@pytest.mark.parametrize("count", [1, 7, 60])
def test_scores_are_ranked_as_circuits_are_made_of_them(count: int) -> None:
    tied = dataclasses.replace(scores(), scores=np.round(scores().scores))
    shown = picture(tied)
    chosen = {edge.name for edge in shown.edges[:count]}
    assert {str(edge) for edge in tied.top(edges=count).edges} <= chosen
    assert len(chosen) == count


def test_a_picture_takes_a_limited_number_of_edges() -> None:
    graph = dataclasses.replace(GRAPH, layers=12, heads=12, kv_heads=12)
    whole = scores(graph)
    shown = picture(whole)
    assert (len(shown.edges), shown.sides[0].drawn, shown.sides[0].edges) == (
        MOST_EDGES,
        MOST_EDGES,
        graph.num_edges,
    )
    two = picture(whole, dataclasses.replace(whole, scores=-whole.scores[::-1]))
    assert [side.drawn for side in two.sides] == [MOST_EDGES // 2] * 2
    assert len(two.edges) <= MOST_EDGES


def test_two_results_share_edges_with_a_rank_on_each_side() -> None:
    first = [Edge("input", "m0", 4.0), Edge("m0", "logits", 1.0)]
    second = [Edge("m0", "logits", -0.5), Edge("input", "logits", 0.25)]
    shown = picture(found(first), found(second), names=("a", "b"))
    facts = {edge.name: (edge.ranks, edge.scores, edge.share) for edge in shown.edges}
    assert facts == {
        "input->m0": ((0, None), (4.0, None), 1.0),
        "m0->logits": ((1, 0), (1.0, -0.5), 1.0),
        "input->logits": ((None, 1), (None, 0.25), 0.5),
    }
    assert [side.name for side in shown.sides] == ["a", "b"]


def test_results_of_one_name_are_told_apart() -> None:
    alike = found(some(3), model="demo", task={"name": "ioi"})
    assert [side.name for side in picture(alike, alike).sides] == ["A: ioi on demo", "B: ioi on demo"]


def test_what_results_of_one_name_differ_in() -> None:
    circuit = found(some(3), model="demo", task={"name": "ioi"})

    def by(method: str, threshold: float | None = None) -> Circuit:
        request = {"parameters": {"method": method}}
        return dataclasses.replace(
            circuit, provenance={**circuit.provenance, "request": request}, threshold=threshold
        )

    sides = picture(by("acdc", 0.1), by("acdc", 0.05)).sides
    assert [side.name for side in sides] == [f"ioi on demo, acdc, threshold {t}" for t in (0.1, 0.05)]
    assert [side.name for side in picture(by("acdc"), by("gim")).sides] == [
        *("ioi on demo, acdc", "ioi on demo, gim")
    ]
    assert picture(by("gim"), by("gim")).sides[0].name == "A: ioi on demo, gim"
    for names, words in ((["a"], "one for each of 2 results, got 1"), ("ab", "must be a list"), ([1, 2], "")):
        with pytest.raises(InvalidRequest, match=rf"^names.*{words}"):
            picture(circuit, circuit, names=names)  # type: ignore[arg-type]


def test_what_the_slider_takes_first() -> None:
    circuit = found(some(3))
    request = {"parameters": {"method": "acdc"}}
    tested = tuple(Verdict(str(edge), 1.0, True) for edge in circuit.edges)
    searched = dataclasses.replace(circuit, provenance={"request": request}, verdicts=tested)
    assert "own test, which does not rank edges" in picture(searched).sides[0].order
    assert picture(circuit).sides[0].order == picture(scores()).sides[0].order == "largest score first"


def test_what_cannot_be_compared() -> None:
    other = found([], dataclasses.replace(GRAPH, layers=2))
    with pytest.raises(InvalidRequest, match="other: belongs to another graph"):
        picture(found([]), other)
    with pytest.raises(InvalidRequest, match=r"other: must be a Circuit or .*, got str; .*Circuit\.load"):
        picture(found([]), "ioi.json")  # type: ignore[arg-type]


def test_shared_keys_feed_the_heads_that_something_reads() -> None:
    edges = [Edge("input", "a1.g1<k>", 1.0), Edge("a1.h4", "logits", 1.0), Edge("input", "a2.g0<v>", 1.0)]
    ends = {edge.name: edge.ends for edge in picture(found(edges)).edges}
    assert ends == {
        "input->a1.g1<k>": ("a1.h4",),
        "a1.h4->logits": ("logits",),
        "input->a2.g0<v>": ("a2.g0",),
    }
    everything = found([Edge(*pair, 1.0) for pair in GRAPH.edges()])
    for edge in picture(everything).edges:
        assert len(edge.ends) == (3 if ".g" in edge.name else 1)


def test_more_curves_than_can_be_drawn() -> None:
    graph = dataclasses.replace(GRAPH, layers=2, heads=1000, kv_heads=1)
    edges = [Edge(f"a0.h{head}", "a1.g0<k>", 1.0) for head in range(900)]
    edges += [Edge(f"a1.h{head}", "logits", 1.0) for head in range(1000)]
    with pytest.raises(InvalidRequest, match="more than 50000 curves"):
        picture(found(edges, graph))
    assert "Picture of the 150 largest of 1900 edges" in found(edges, graph)._repr_html_()


def test_what_is_known_of_the_metric() -> None:
    assert picture(found(some(5))).sides[0].points == ((0, 5.0, 0.0), (5, 0.5, 0.9))
    unmeasured = dataclasses.replace(found(some(5)), metric=CircuitMetric("l2", math.nan, 0.0, 0.0))
    assert picture(unmeasured).sides[0].points == ((0, 0.0, None),)
    curve = Curve.from_values([0.1, 1.0], [0.0, -3.0], full=-3.0, empty=1.0, num_edges=[20, GRAPH.num_edges])
    points = picture(scores(), curve=curve).sides[0].points
    assert points == ((0, 1.0, 0.0), (20, 0.0, 0.25), (GRAPH.num_edges, -3.0, 1.0))


def test_facts_come_from_any_provenance() -> None:
    run = {"model": 3, "task": [], "warnings": "x", "prompts": {"clean": [1, "b"], "corrupted": "no"}}
    side = picture(found(some(2), **run)).sides[0]
    assert side.prompts == (("1", ""), ("b", ""))
    assert ("edges", f"2 of {GRAPH.num_edges}") in side.facts
    for provenance in ({"run": 3}, {"request": {"parameters": 5}}, {"run": {"task": {"name": ""}}}, {}):
        odd = dataclasses.replace(found(some(2)), provenance=provenance)
        assert picture(odd).sides[0].name == "circuit"


# Layout.


def boxes_overlap(layout: Layout) -> bool:
    pairs = itertools.combinations(layout.boxes.values(), 2)
    return any(
        abs(a.x - b.x) < (a.width + b.width) / 2 and abs(a.y - b.y) < (a.height + b.height) / 2
        for a, b in pairs
    )


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_nodes_stand_in_layers_and_columns(parallel: bool, seed: int) -> None:
    graph = dataclasses.replace(GRAPH, parallel=parallel)
    nodes = random.Random(seed).sample(["input", "logits", *graph.senders()], 12)
    layout = arrange(set(nodes), graph)
    assert set(layout.boxes) == set(nodes)
    assert not boxes_overlap(layout)
    ordered = sorted(nodes, key=node_order)
    for low, high in itertools.pairwise(ordered):
        assert layout.boxes[low].y >= layout.boxes[high].y
        if node_order(low)[0] < node_order(high)[0]:
            assert layout.boxes[low].y > layout.boxes[high].y
    columns: dict[str, set[float]] = {}
    for name, box in layout.boxes.items():
        assert 0 < box.x - box.width / 2 < box.x + box.width / 2 < layout.width
        assert 0 < box.y - NODE_HEIGHT / 2 < box.y + NODE_HEIGHT / 2 < layout.height
        columns.setdefault(name.split(".")[-1] if "." in name else name[0], set()).add(box.x)
    assert all(len(each) == 1 for each in columns.values())
    assert [band.label for band in layout.bands] == [
        f"layer {layer}"
        for layer in sorted({node_order(n)[0] for n in nodes if n not in ("input", "logits")})
    ]


def test_names_that_no_model_has_get_a_place() -> None:
    layout = arrange({"input", "logits", "x" * 500, "a9", "a1.g0", "a1.h0", "</svg>"}, GRAPH)
    assert not boxes_overlap(layout)
    assert len(layout.boxes) == 7


def test_scores_tell_the_score_of_every_edge_of_the_other_side() -> None:
    first, second = scores(), scores()
    second = dataclasses.replace(second, scores=second.scores[::-1].copy())
    shown = picture(first, second, most=20)
    numbers = {name: number for number, name in enumerate(GRAPH.edge_names())}
    assert any(None in edge.ranks for edge in shown.edges)
    for edge in shown.edges:
        number = numbers[edge.name]
        assert edge.scores == (first.scores[number], second.scores[number])
    circuit = found([Edge("input", "m0", 0.5), Edge("m9", "logits", 0.25)])  # the graph has no m9
    assert [edge.scores[1] for edge in picture(circuit, first).edges if edge.ranks[0] is not None] == [
        first.scores[numbers["input->m0"]],
        None,
    ]


def test_a_curve_of_other_edges_is_refused() -> None:
    curve = Curve.from_values([0.1, 1.0], [0.0, -3.0], full=-3.0, empty=1.0, num_edges=[20, GRAPH.num_edges])
    picture(scores(), curve=dataclasses.replace(curve, method="eap", selection="top absolute"))
    for change in ({"method": "gim"}, {"metric": "l2"}, {"selection": "greedy absolute"}):
        with pytest.raises(InvalidRequest, match=f"^curve: .*{next(iter(change.values()))}"):
            picture(scores(), curve=dataclasses.replace(curve, **change))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=r"^curve: is for scores"):
        picture(found(some(3)), curve=curve)
    with pytest.raises(InvalidRequest, match=r"^curve: must be a Curve, got list"):
        picture(scores(), curve=[])  # type: ignore[arg-type]


def test_facts_of_a_circuit_tell_the_threshold_that_was_found() -> None:
    circuit = found(some(3), model="demo")
    request = {"parameters": {"method": "acdc", "edges": 3}}
    circuit = dataclasses.replace(
        circuit, provenance={**circuit.provenance, "request": request}, threshold=0.25
    )
    side = picture(circuit).sides[0]
    assert side.method == "acdc, threshold 0.25"
    assert dict(side.facts)["threshold"] == "0.25"
    unmeasured = dataclasses.replace(
        circuit, num_evaluations=0, metric=CircuitMetric("", math.nan, math.nan, math.nan), threshold=None
    )
    facts = dict(picture(unmeasured).sides[0].facts)
    assert facts["metric"] == "not measured"
    assert not {"evaluations", "threshold", ""} & facts.keys()


def test_curves_lead_from_box_to_box() -> None:
    shown = picture(found(some(80)))
    layout = shown.layout()
    for edge, path in zip(shown.edges, shown.paths(layout), strict=True):
        curves = re.findall(r"M([-\d.]+),([-\d.]+)C\S+ \S+ ([-\d.]+),([-\d.]+)", path)
        assert len(curves) == len(edge.ends)
        for (x1, y1, x2, y2), end in zip(curves, edge.ends, strict=True):
            source, target = layout.boxes[edge.source], layout.boxes[end]
            assert float(y1) == pytest.approx(source.y - NODE_HEIGHT / 2, abs=0.06)
            assert float(y2) == pytest.approx(target.y + NODE_HEIGHT / 2, abs=0.06)
            assert abs(float(x1) - source.x) < source.width / 2
            assert abs(float(x2) - target.x) < target.width / 2


def test_a_curve_passes_beside_a_node_that_is_in_its_way() -> None:
    shown = picture(found([Edge("m0", "m3", 1.0), Edge("m0", "m1", 1.0), Edge("m1", "m3", 1.0)]))
    layout = shown.layout()
    paths = dict(zip((edge.name for edge in shown.edges), shown.paths(layout), strict=True))
    assert [float(x) for x in re.findall(r"([-\d.]+),", paths["m0->m1"])] == [layout.boxes["m0"].x] * 4
    numbers = [float(x) for x in re.findall(r"([-\d.]+),", paths["m0->m3"])]
    middle = (numbers[0] + 3 * numbers[1] + 3 * numbers[2] + numbers[3]) / 8
    assert abs(middle - layout.boxes["m1"].x) > layout.boxes["m1"].width / 2


def test_a_curve_keeps_to_the_side_of_its_other_end() -> None:
    """Where a node stands in the middle of its way, it passes beside it and stays between its ends."""
    edges = [Edge("a0.h3", "a2.h0<v>", 1.0), Edge("a0.h0", "a2.h3<v>", 1.0)]
    others = [Edge("a0.h1", "m0", 1.0), Edge("a0.h2", "m0", 1.0), Edge("m0", "logits", 1.0)]
    shown = picture(found([*edges, *others]))
    layout = shown.layout()
    paths = dict(zip((edge.name for edge in shown.edges), shown.paths(layout), strict=True))
    for edge in edges:
        points = [float(x) for x in re.findall(r"([-\d.]+),", paths[str(edge)])]
        assert min(points[0], points[3]) <= min(points) <= max(points) <= max(points[0], points[3])
        source, target = layout.boxes[edge.source], layout.boxes[edge.target.removesuffix("<v>")]
        assert (points[0] > source.x) is (target.x > source.x)
        ys = [float(y) for y in re.findall(r",([-\d.]+)", paths[str(edge)])]
        node = layout.boxes["m0"]
        for step in range(101):
            x, y = (_at(step / 100, values) for values in (points, ys))
            assert abs(x - node.x) > node.width / 2 or abs(y - node.y) > NODE_HEIGHT / 2


def _at(t: float, values: list[float]) -> float:
    """A point of a cubic curve."""
    a, b, c, d = values
    return (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t**2 * c + t**3 * d


# SVG.


def test_svg_is_deterministic_and_complete() -> None:
    circuit = found([*some(40), Edge("input", "m3")], model="demo", task={"name": "ioi"})
    text = circuit.to_svg()
    assert (
        text == circuit.to_svg() == dataclasses.replace(circuit, provenance=dict(circuit.provenance)).to_svg()
    )
    root = ElementTree.fromstring(text)
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert titles[0] == "ioi on demo"
    drawn = dict(title.rsplit("  ", 1) for title in titles[1:] if title)
    expected = {
        str(edge): "not measured" if edge.score is None else f"{edge.score:.6g}" for edge in circuit.edges
    }
    assert drawn == expected
    nodes = {element.text for element in root.iter(f"{SVG}text")}
    assert {name for edge in picture(circuit).edges for name in (edge.source, *edge.ends)} <= nodes
    dashed = [element for element in root.iter(f"{SVG}path") if element.get("stroke-dasharray")]
    assert len(dashed) == 2  # the edge, and the legend's line


def test_svg_of_the_largest_edges() -> None:
    circuit = found(some(40))
    largest = sorted(circuit.edges, key=lambda edge: -abs(edge.score or 0))[:3]
    text = circuit.to_svg(edges=3)
    assert text == found(largest).to_svg()
    for number in (0, 2001, True, "3"):
        with pytest.raises(InvalidRequest, match="edges"):
            circuit.to_svg(edges=number)  # type: ignore[arg-type]


def test_colours_and_widths_tell_kind_sign_and_size() -> None:
    edges = [
        Edge("input", "a0.h0<q>", 4.0),
        Edge("a0.h0", "m0", 1.0),
        Edge("a0.h0", "m1", -1.0),
        Edge("m0", "logits"),
    ]
    root = ElementTree.fromstring(found(edges).to_svg())
    styles = {}
    for element in root.iter(f"{SVG}path"):
        title = element.find(f"{SVG}title")
        if title is not None and title.text:
            styles[title.text.split()[0]] = element.get("stroke"), float(element.get("stroke-width", 0))
    colours = {name: colour for name, (colour, _) in styles.items()}
    wanted = ("q", "other", "negative", "unmeasured")
    assert [colours[str(edge)] for edge in edges] == [palette.LIGHT[name] for name in wanted]
    assert (
        styles["input->a0.h0<q>"][1]
        > styles["a0.h0->m0"][1]
        == styles["a0.h0->m1"][1]
        > styles["m0->logits"][1]
    )


@pytest.mark.parametrize("circuit", [found([]), found([Edge("input", "logits")])])
def test_small_circuits(circuit: Circuit) -> None:
    root = ElementTree.fromstring(circuit.to_svg())
    assert root.tag == f"{SVG}svg"
    assert float(root.get("width", 0)) > 0


def _luminance(colour: str) -> float:
    parts = [value / 255 for value in bytes.fromhex(colour[1:])]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    """The contrast ratio of WCAG 2.2."""
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK], ids=["light", "dark"])
def test_contrast(theme: dict[str, str]) -> None:
    assert set(theme) == set(palette.LIGHT)
    for ground in ("ground", "band", "card"):
        assert contrast(theme["ink"], theme[ground]) >= 7
        assert contrast(theme["muted"], theme[ground]) >= 4.5
        assert contrast(theme["accent"], theme[ground]) >= 4.5
        assert contrast(theme["field"], theme[ground]) >= 3
        for line in (
            "q",
            "k",
            "v",
            "other",
            "negative",
            "positive",
            "unmeasured",
            "both",
            "only-a",
            "only-b",
        ):
            assert contrast(theme[line], theme[ground]) >= 3, (line, ground)
    for text, box in (("ink", "node"), ("ink", "mlp-node"), ("end-ink", "end-node")):
        assert contrast(theme[text], theme[box]) >= 7


# Notebooks.


def image(html: str) -> str:
    (encoded,) = re.findall(r'src="data:image/svg\+xml;base64,([\w+/=]+)"', html)
    return base64.b64decode(encoded).decode()


def test_a_notebook_shows_a_picture_without_scripts() -> None:
    circuit = found(some(40))
    html = circuit._repr_html_()
    root = ElementTree.fromstring(image(html))
    curves = [element for element in root.iter(f"{SVG}path") if "C" in element.get("d", "")]
    assert len(curves) == 40
    assert "<script" not in html
    assert "on a path from input to logits" in html
    assert 'alt="Picture of the circuit"' in html


def test_a_notebook_shows_the_largest_of_many_scores() -> None:
    html = scores()._repr_html_()
    assert f"Picture of the 150 largest of {GRAPH.num_edges} edges" in html
    assert image(html).count("stroke-opacity") == 150
    assert "method=&#x27;eap&#x27;" in html
    assert f"and {GRAPH.num_edges - 50} more" in html
    largest = int(np.argmax(np.abs(scores().scores)))
    assert html.index("<table>") < html.index(scores().index.name(largest).replace(">", "&gt;"))


def test_a_notebook_gets_no_markup_of_a_file() -> None:
    evil = "</svg><script>alert(1)</script>"
    odd = found([Edge(evil, "logits", 1.0)], model=evil, warnings=[evil], task={"name": evil})
    html = odd._repr_html_()
    assert "<script" not in html
    assert "<script" not in image(html)
    assert "<script" not in odd.to_svg()
    ElementTree.fromstring(image(html))
