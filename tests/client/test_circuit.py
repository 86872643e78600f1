"""Circuits and what is made of them: names, graphs, drawings, comparisons."""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from pathlib import Path

import networkx
import pytest

from pahq_client import (
    Circuit,
    CircuitMetric,
    Edge,
    InvalidCircuitFile,
    InvalidRequest,
    OtherModel,
    compare,
)


def test_counts_and_names(circuit: Circuit) -> None:
    assert [str(edge) for edge in circuit.edges[:2]] == ["m1->logits", "a0.h1->a1.h2<q>"]
    assert Edge.parse("a0.h1->a1.h2<q>") == Edge("a0.h1", "a1.h2<q>")
    assert circuit.removed_without_test == 79
    assert circuit.metric_value == 0.03
    assert circuit.parameters["ablation"] == "mean"
    odd = dataclasses.replace(circuit, provenance={"request": {"parameters": 3}})
    assert odd.parameters == {}
    assert repr(odd).endswith("3 evaluations)")
    assert repr(circuit) == (
        "Circuit(4 of 81 edges, 0 on a path from input to logits, kl_divergence=0.03, faithfulness=0.988, "
        "3 evaluations, model='tinytalk', threshold=0.1)"
    )
    for name in ("a0.h1", "logits->m0", "a0.h1->a1.h2", "", "a0.h1->a1.h2<q> "):
        with pytest.raises(InvalidRequest):
            Edge.parse(name)


def test_networkx_has_one_arrow_per_head_that_reads(circuit: Circuit) -> None:
    graph = circuit.to_networkx()
    assert set(graph) == {"input", "m0", "a0.h1", "a1.h2", "a1.h3", "m1", "logits"}
    assert set(graph.edges(keys=True)) == {
        ("m1", "logits", "logits"),
        ("a0.h1", "a1.h2", "q"),
        ("a0.h1", "a1.h2", "v"),
        ("a0.h1", "a1.h3", "v"),
        ("input", "m0", "mlp"),
    }
    assert graph.edges["a0.h1", "a1.h3", "v"] == {
        "edge": "a0.h1->a1.g1<v>",
        "receiver": "v",
        "score": 1 / 3,
    }
    assert "score" not in graph.edges["input", "m0", "mlp"]


def test_dot_is_deterministic_and_complete(circuit: Circuit) -> None:
    text = circuit.to_dot()
    assert text == circuit.to_dot()
    assert text.startswith("digraph circuit {")
    assert text.endswith("}\n")
    style = r'penwidth=[\d.]+, color="#[\da-f]{6}"(?:, style=dashed)?'
    form = rf'^  "([^"]+)" -> "([^"]+)" \[label="([qkv]?)", tooltip="[^"]*", {style}\];$'
    arrows = re.findall(form, text, re.M)
    assert arrows == [
        ("m1", "logits", ""),
        ("a0.h1", "a1.h2", "q"),
        ("a0.h1", "a1.h2", "v"),
        ("a0.h1", "a1.h3", "v"),
        ("input", "m0", ""),
    ]
    assert '{ rank=same; "a1.h2"; "a1.h3"; }' in text


def test_dot_and_html_escape(circuit: Circuit) -> None:
    odd = dataclasses.replace(
        circuit, edges=(Edge('a"\\', "logits", 1.0),), provenance={"run": {"model": "<b>"}}
    )
    assert r'"a\"\\" -> "logits"' in odd.to_dot()
    assert "&lt;b&gt;" in odd._repr_html_()
    assert "<b>'" not in odd._repr_html_()


def test_html_shows_the_heaviest_edges(circuit: Circuit) -> None:
    many = tuple(Edge(f"a0.h{i}", "logits", float(i)) for i in range(60))
    html = dataclasses.replace(circuit, edges=many)._repr_html_()
    assert html.index("a0.h59") < html.index("a0.h58")
    assert "a0.h9-" not in html
    assert "and 10 more" in html


def test_compare(circuit: Circuit) -> None:
    other = dataclasses.replace(circuit, edges=(*circuit.edges[2:], Edge("input", "logits")))
    result = compare(circuit, other)
    assert result.shared == ("a0.h1->a1.g1<v>", "input->m0")
    assert result.only_a == ("m1->logits", "a0.h1->a1.h2<q>")
    assert result.only_b == ("input->logits",)
    assert result.jaccard == 2 / 5
    empty = dataclasses.replace(circuit, edges=())
    assert compare(empty, empty).jaccard == 1.0
    assert compare(circuit, empty).jaccard == 0.0
    with pytest.raises(InvalidRequest, match="different graphs"):
        compare(circuit, dataclasses.replace(circuit, graph=dataclasses.replace(circuit.graph, layers=3)))


def test_a_circuit_is_a_collection_of_its_edges(circuit: Circuit) -> None:
    assert len(circuit) == 4
    assert list(circuit) == list(circuit.edges)
    assert "a0.h1->a1.h2<q>" in circuit
    assert Edge("a0.h1", "a1.h2<q>", 99.0) in circuit  # whatever its score is
    assert "a0.h1->a1.h2<k>" not in circuit
    for wrong in ("a0.h1", "", 3, None):
        with pytest.raises(InvalidRequest, match="edge: "):
            _ = wrong in circuit
    empty = dataclasses.replace(circuit, edges=())
    assert len(empty) == 0
    assert empty  # there is a circuit
    assert empty.nodes == ()


def test_nodes_are_in_the_order_of_computation(circuit: Circuit) -> None:
    assert circuit.nodes == ("input", "a0.h1", "m0", "a1.h2", "a1.h3", "m1", "logits")
    assert circuit.model == "tinytalk"
    assert dataclasses.replace(circuit, provenance={"run": {"model": 3}}).model == ""
    totals = {total.node: total for total in circuit.by_node()}
    assert next(iter(totals)) == "m1"
    assert totals["a0.h1"].outgoing == pytest.approx(0.1 + 1 / 3)
    assert totals["a1.h3"].incoming == pytest.approx(1 / 3)
    assert (totals["a1.h2"].incoming, totals["a1.h2"].num_incoming) == (pytest.approx(0.1 + 1 / 3), 2)
    assert (totals["m0"].total, totals["m0"].num_incoming, totals["m0"].num_outgoing) == (0.0, 1, 0)
    with pytest.raises(InvalidRequest, match="no edge m1->m0"):
        dataclasses.replace(circuit, edges=(Edge("m1", "m0"),)).by_node()


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("a0.h1->a12.h3<q>", ("head", 0, 1), ("q", 12, 3, None)),
        ("input->a2.g1<v>", ("input", None, None), ("v", 2, None, 1)),
        ("m3->m10", ("mlp", 3, None), ("mlp", 10, None, None)),
        ("a0.h7->logits", ("head", 0, 7), ("logits", None, None, None)),
    ],
)
def test_edges_tell_their_places(name: str, source: tuple[object, ...], target: tuple[object, ...]) -> None:
    edge = Edge.parse(name)
    assert (edge.source_kind, edge.source_layer, edge.source_head) == source
    assert (edge.kind, edge.layer, edge.head, edge.group) == target


def test_operations_on_sets(circuit: Circuit) -> None:
    other = dataclasses.replace(
        circuit,
        edges=(Edge("input", "logits", 2.0), Edge("m1", "logits", 9.0), Edge("input", "m0", 4.0)),
        metric=dataclasses.replace(circuit.metric, empty=2.75),
    )
    first, second = set(map(str, circuit)), set(map(str, other))
    for result, expected in (
        (circuit & other, first & second),
        (circuit | other, first | second),
        (circuit - other, first - second),
        (other - circuit, second - first),
        (circuit ^ other, first ^ second),
    ):
        assert {str(edge) for edge in result} == expected
        assert len(result) == len(expected)
        assert not result.is_measured
        assert (result.verdicts, result.gates_kept, result.num_evaluations) == ((), (), 0)
        assert (result.metric.full, result.metric.name) != (0.0, "")
        assert result.num_edges_total == circuit.num_edges_total
    assert [edge.score for edge in circuit & other] == [0.75, None]  # those of the first
    assert [edge.score for edge in other & circuit] == [9.0, 4.0]
    assert [str(edge) for edge in other | circuit][:3] == [str(edge) for edge in other]
    both = circuit & circuit
    assert (both.metric.name, both.metric.full, both.metric.empty) == ("kl_divergence", 0.0, 2.5)
    assert both.model == "tinytalk"
    assert both.parameters == circuit.parameters
    with pytest.raises(TypeError):
        _ = circuit & {"m1->logits"}  # type: ignore[operator]


def test_operations_keep_what_their_circuits_have_in_common(circuit: Circuit) -> None:
    task = {"name": "ioi", "num_prompts": 4, "seed": 0}
    request = {"policy": "bf16", "task_hash": "t", "parameters": {"ablation": "mean", "threshold": 0.1}}
    one = dataclasses.replace(
        circuit,
        provenance={"request": request, "run": {"model": "demo", "task": task, "warnings": ["a", "b"]}},
    )
    parameters = {"ablation": "mean", "threshold": 0.2}
    two = dataclasses.replace(
        one,
        partial=True,
        provenance={
            "request": {**request, "task_hash": "u", "parameters": parameters},
            "run": {"model": "demo", "task": task, "warnings": ["b", "c"], "seconds": 3},
        },
    )
    both = one & two
    assert both.request == {"policy": "bf16", "parameters": {"ablation": "mean"}, "operation": "&"}
    assert (both.run["model"], both.run["task"]) == ("demo", task)
    assert both.warnings[:3] == ("a", "b", "c")
    assert "had not tested count as kept" in both.warnings[3]
    assert "seconds" not in both.run
    assert (one | one).warnings == ("a", "b")
    assert "operation='|', threshold=0.1" in repr(one | one)
    odd = dataclasses.replace(circuit, provenance={"request": None, "run": 3})
    assert (odd.request, odd.run, odd.parameters, odd.warnings) == ({}, {}, {}, ())
    assert len(odd & one) == len(circuit)


def test_the_threshold_that_was_found_is_shown(circuit: Circuit) -> None:
    request = {"parameters": {"method": "acdc", "faithfulness": 0.9}}
    found = dataclasses.replace(circuit, provenance={"request": request}, threshold=0.0125)
    assert "threshold=0.0125" in repr(found)
    assert "threshold" not in repr(dataclasses.replace(found, threshold=None))


def test_a_pruned_circuit_that_was_not_measured_has_no_metric_to_warn_of(circuit: Circuit) -> None:
    loose = dataclasses.replace(circuit, edges=(*circuit.edges, Edge("input", "a0.h0<q>")))
    assert loose.pruned().warnings != loose.warnings
    unmeasured = dataclasses.replace(loose, metric=CircuitMetric("l2", math.nan, 0.0, 1.0))
    assert unmeasured.pruned().warnings == unmeasured.warnings


def test_operations_keep_to_one_graph_and_model(circuit: Circuit) -> None:
    deeper = dataclasses.replace(circuit, graph=dataclasses.replace(circuit.graph, layers=3))
    one, two = (
        dataclasses.replace(circuit, provenance={"request": {"model_revision": revision}})
        for revision in "ab"
    )
    for combine in (operator.and_, operator.or_, operator.sub, operator.xor):
        with pytest.raises(InvalidRequest, match="different graphs"):
            combine(circuit, deeper)
        with pytest.raises(OtherModel, match="revisions a and b"):
            combine(one, two)
        assert combine(circuit, one).model_revision == "a"
    with pytest.raises(OtherModel, match="allow_other_model=True"):
        compare(one, two)
    assert compare(one, two, allow_other_model=True).jaccard == 1.0
    assert compare(one, circuit).jaccard == 1.0


def test_a_circuit_that_was_not_measured(circuit: Circuit, tmp_path: Path) -> None:
    metric = CircuitMetric("l2", math.nan, 0.0, math.nan)
    unmeasured = dataclasses.replace(circuit, metric=metric, num_evaluations=0, verdicts=())
    unmeasured.save(tmp_path / "c.json")
    content = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert content["metric"] == {"name": "l2", "value": None, "full": 0.0, "empty": None}
    again = Circuit.load(tmp_path / "c.json")
    assert again == unmeasured
    assert not again.is_measured
    assert math.isnan(again.metric.empty)
    assert again.faithfulness is None
    assert "l2 not measured" in repr(again)
    assert "not measured" in again._repr_html_()
    nameless = dataclasses.replace(circuit, metric=CircuitMetric("", math.nan, math.nan, math.nan))
    assert ", not measured, " in repr(nameless)
    # What was measured has all three values.
    content["metric"]["value"] = 0.5
    (tmp_path / "c.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(InvalidCircuitFile, match="'empty' of metric"):
        Circuit.load(tmp_path / "c.json")
    # A search measures what it has found.
    for part in ("value", "empty"):
        broken = dataclasses.replace(circuit, metric=dataclasses.replace(circuit.metric, **{part: math.nan}))
        with pytest.raises(InvalidCircuitFile, match="cannot be written"):
            broken.save(tmp_path / "c.json")


def test_nodes_have_attributes_in_networkx(circuit: Circuit) -> None:
    nodes = circuit.to_networkx().nodes
    assert nodes["a1.h3"] == {"kind": "head", "layer": 1, "head": 3, "score": 1 / 3}
    assert nodes["m1"] == {"kind": "mlp", "layer": 1, "score": 0.75}
    assert nodes["input"] == {"kind": "input", "score": 0.0}
    assert nodes["logits"] == {"kind": "logits", "score": 0.75}


def test_graphml_is_read_back_by_networkx(circuit: Circuit, tmp_path: Path) -> None:
    text = circuit.to_graphml()
    assert text == circuit.to_graphml()
    again = networkx.parse_graphml(text, force_multigraph=True)
    graph = circuit.to_networkx()
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    arrows = {(a, b, data["receiver"]): data for a, b, data in again.edges(data=True)}
    assert {key: {k: v for k, v in data.items() if k != "id"} for key, data in arrows.items()} == {
        key: graph.edges[key] for key in graph.edges(keys=True)
    }
    ids = re.findall(r'<edge [^>]*id="([^"]*)"', text)
    assert len(set(ids)) == len(ids) == graph.number_of_edges()
    assert "a0.h1-&gt;a1.h3&lt;v&gt;" in ids


def test_a_comparison_is_told_in_a_line(circuit: Circuit) -> None:
    found = compare(circuit, dataclasses.replace(circuit, edges=circuit.edges[1:]))
    assert repr(found) == str(found) == "Comparison(3 shared, 1 only in a, 0 only in b, jaccard=0.75)"


def test_a_picture_is_written(circuit: Circuit, tmp_path: Path) -> None:
    assert circuit.to_svg(tmp_path / "c.svg") is None  # type: ignore[func-returns-value]
    assert (tmp_path / "c.svg").read_text("utf-8") == circuit.to_svg()
    circuit.to_svg(str(tmp_path / "c.svg"), edges=2)
    assert (tmp_path / "c.svg").read_text("utf-8") == circuit.to_svg(edges=2)
    with pytest.raises(InvalidRequest, match=r"path: cannot write .*name a file in it"):
        circuit.to_svg(tmp_path)


def test_graphs_are_told_in_words(circuit: Circuit) -> None:
    other = dataclasses.replace(circuit, graph=dataclasses.replace(circuit.graph, layers=3, mlps=False))
    words = "one of 2 layers, 4 heads, 2 key/value heads, kv_receivers 'group', one of 3 layers.*, no MLPs"
    with pytest.raises(InvalidRequest, match=words):
        compare(circuit, other)
    revised = [
        dataclasses.replace(circuit, provenance={"request": {"model_revision": letter * 64}})
        for letter in "ab"
    ]
    with pytest.raises(OtherModel, match=r"revisions a{12} and b{12}\)"):
        compare(*revised)
