"""Circuits and what is made of them: names, graphs, drawings, comparisons."""

from __future__ import annotations

import dataclasses
import re

import pytest

from pahq_client import (
    Circuit,
    Edge,
    InvalidRequest,
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
