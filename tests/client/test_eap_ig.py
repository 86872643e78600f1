"""Files of EAP-IG: exactly its keys and its order, both ways, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import topology
from helpers.graphs import graphs
from hypothesis import given, settings
from hypothesis import strategies as st

from pahq_client import Circuit, Edge, EdgeScores, Graph, InvalidCircuitFile, InvalidRequest
from pahq_server.core import graph as server_graph

from .test_selection import client_graph, made_up

PLAIN = Graph(layers=2, heads=2, kv_heads=2, kv_receivers="query", parallel=False)
GROUPED = Graph(layers=2, heads=4, kv_heads=2, kv_receivers="group", parallel=False)
with_mlps = graphs(max_layers=2).filter(lambda graph: graph.mlps)


def names(circuit: Circuit) -> list[str]:
    return [str(edge) for edge in circuit.edges]


def test_the_document_has_exactly_the_keys_of_eap_ig() -> None:
    graph = Graph(layers=1, heads=1, kv_heads=1, kv_receivers="group", parallel=False)
    circuit = EdgeScores(np.array([0.5, -1.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0]), graph, "eap", "l2").circuit(
        np.array([0, 0, 1, 0, 1, 0, 1, 1], bool)
    )
    assert circuit.to_eap_ig(d_model=16) == {
        "cfg": {"n_layers": 1, "n_heads": 1, "parallel_attn_mlp": False, "d_model": 16},
        "nodes": {
            "input": {"in_graph": True},
            "a0.h0": {"in_graph": True},
            "m0": {"in_graph": True},
            "logits": {"in_graph": True},
        },
        "edges": {
            "input->a0.h0<q>": {"score": 0.0, "in_graph": False},
            "input->a0.h0<k>": {"score": 0.0, "in_graph": False},
            "input->a0.h0<v>": {"score": 0.0, "in_graph": True},
            "input->m0": {"score": 0.0, "in_graph": False},
            "a0.h0->m0": {"score": 3.0, "in_graph": True},
            "input->logits": {"score": 0.0, "in_graph": False},
            "a0.h0->logits": {"score": 5.0, "in_graph": True},
            "m0->logits": {"score": 6.0, "in_graph": True},
        },
    }


def test_nodes_are_in_that_have_an_edge_in_and_an_edge_out() -> None:
    kept = ("input->a0.h0<k>", "a0.h1->m0", "m0->logits", "input->a1.h0<q>")
    circuit = dataclasses.replace(made_up(PLAIN).top(edges=1), edges=tuple(map(Edge.parse, kept)))
    nodes = circuit.to_eap_ig(d_model=8)["nodes"]
    assert [name for name, node in nodes.items() if node["in_graph"]] == ["input", "m0", "logits"]


@given(with_mlps)
def test_every_edge_of_eap_igs_graph_is_listed(graph: server_graph.Graph) -> None:
    per_head = dataclasses.replace(graph, kv_receivers="query")
    document = made_up(client_graph(graph)).to_eap_ig(d_model=8)
    assert set(document["edges"]) == set(topology.edge_names(per_head))
    assert set(document["nodes"]) == {*topology.senders_before(graph, graph.layers), "logits"}
    assert [name for name, node in document["nodes"].items() if node["in_graph"]] == ["logits"]
    assert not any(edge["in_graph"] for edge in document["edges"].values())


@settings(deadline=None, max_examples=20)
@given(with_mlps, st.integers(0, 2**32 - 1), st.sampled_from(["json", "pt", "object"]))
def test_scores_and_circuits_round_trip(graph: server_graph.Graph, seed: int, form: str) -> None:
    given_graph = client_graph(graph)
    scores = made_up(given_graph, seed)
    circuit = scores.greedy(fraction=0.5)
    sources: list[Any] = []
    for number, source in enumerate((scores, circuit)):
        if form == "object":
            sources.append(source.to_eap_ig(d_model=24))
        else:
            path = f"/dev/shm/pahq-test-{seed}-{number}.{form}"
            source.to_eap_ig(path, d_model=24)
            sources.append(path)
    try:
        again = EdgeScores.from_eap_ig(sources[0], graph=given_graph, metric="l2")
        found = Circuit.from_eap_ig(sources[1], graph=given_graph)
        plain = EdgeScores.from_eap_ig(sources[0])
    finally:
        for source in sources:
            if isinstance(source, str):
                Path(source).unlink()
    np.testing.assert_allclose(again.scores, scores.scores, rtol=1e-15)
    assert (again.graph, again.method, again.metric) == (given_graph, "eap_ig", "l2")
    assert again.to_eap_ig()["cfg"] == scores.to_eap_ig(d_model=24)["cfg"]
    assert names(found) == names(circuit)
    assert [edge.score for edge in found.edges] == pytest.approx([edge.score for edge in circuit.edges])
    assert found.graph == given_graph
    assert not found.is_measured
    assert plain.graph == dataclasses.replace(given_graph, kv_heads=graph.heads, kv_receivers="query")
    assert plain.scores.sum() == pytest.approx(scores.scores.sum())


def test_shared_keys_are_written_in_equal_parts_and_summed() -> None:
    scores = made_up(GROUPED)
    by_name = dict(zip(GROUPED.edge_names(), scores.scores.tolist(), strict=True))
    circuit = scores.top(fraction=0.4)
    shared = next(edge for edge in circuit.edges if ".g1<v>" in edge.target)
    edges = circuit.to_eap_ig(d_model=8)["edges"]
    for head in (2, 3):
        entry = edges[f"{shared.source}->{shared.target.replace('g1', f'h{head}')}"]
        assert entry == {"score": by_name[str(shared)] / 2, "in_graph": True}
    assert sum(edge["in_graph"] for edge in edges.values()) > len(circuit)
    again = Circuit.from_eap_ig({**circuit.to_eap_ig(d_model=8)}, graph=GROUPED)
    assert names(again) == names(circuit)


def test_heads_that_differ_in_a_shared_key_are_refused() -> None:
    document = made_up(GROUPED).to_eap_ig(d_model=8)
    document["edges"]["m0->a1.h2<k>"]["in_graph"] = True
    with pytest.raises(InvalidCircuitFile, match=r"m0->a1.g1<k> is in it for 1 of 2 heads.*'query'"):
        Circuit.from_eap_ig(document, graph=GROUPED)
    assert names(Circuit.from_eap_ig(document)) == ["m0->a1.h2<k>"]
    document["edges"]["m0->a1.h3<k>"]["in_graph"] = True
    assert names(Circuit.from_eap_ig(document, graph=GROUPED)) == ["m0->a1.g1<k>"]


def test_tensors_are_laid_out_as_eap_igs(tmp_path: Path) -> None:
    scores = made_up(PLAIN)
    circuit = scores.top(fraction=0.5)
    circuit.to_eap_ig(tmp_path / "c.pt", d_model=8)
    content = torch.load(tmp_path / "c.pt", weights_only=True)
    assert list(content) == [
        "cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph",
    ]  # fmt: skip
    assert content["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 8}
    assert content["src_nodes"] == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1"]
    layer = ["a{}.h0<q>", "a{}.h1<q>", "a{}.h0<k>", "a{}.h1<k>", "a{}.h0<v>", "a{}.h1<v>", "m{}"]
    assert content["dst_nodes"] == [*(n.format(0) for n in layer), *(n.format(1) for n in layer), "logits"]
    assert content["edges_scores"].shape == content["edges_in_graph"].shape == (7, 15)
    assert content["edges_in_graph"].dtype == content["nodes_in_graph"].dtype == torch.bool
    document = circuit.to_eap_ig(d_model=8)
    for name, edge in document["edges"].items():
        sender, receiver = name.split("->")
        place = content["src_nodes"].index(sender), content["dst_nodes"].index(receiver)
        assert content["edges_scores"][place].item() == edge["score"]
        assert content["edges_in_graph"][place].item() == edge["in_graph"]
    assert int(content["edges_in_graph"].sum()) == len(circuit)
    assert content["nodes_in_graph"].tolist() == [
        document["nodes"][name]["in_graph"] for name in content["src_nodes"]
    ]


def test_the_width_of_the_model_is_needed_and_kept() -> None:
    scores = made_up(PLAIN)
    with pytest.raises(InvalidRequest, match=r"d_model: .*pass d_model=.*Client.models"):
        scores.to_eap_ig()
    with pytest.raises(InvalidRequest, match="d_model: must be at least 1"):
        scores.top(edges=3).to_eap_ig(d_model=0)
    again = EdgeScores.from_eap_ig(scores.to_eap_ig(d_model=12))
    assert again.to_eap_ig()["cfg"]["d_model"] == again.top(edges=3).to_eap_ig()["cfg"]["d_model"] == 12


def test_a_graph_without_mlps_is_refused() -> None:
    scores = made_up(dataclasses.replace(PLAIN, mlps=False))
    with pytest.raises(InvalidRequest, match="has no MLPs"):
        scores.to_eap_ig(d_model=8)


def test_a_file_without_scores_is_a_circuit_only() -> None:
    document = made_up(PLAIN).top(edges=20).to_eap_ig(d_model=8)
    kept = [name for name, edge in document["edges"].items() if edge["in_graph"]]
    for edge in document["edges"].values():
        del edge["score"]
    circuit = Circuit.from_eap_ig(document)
    assert sorted(names(circuit)) == sorted(kept)
    assert {edge.score for edge in circuit.edges} == {None}
    with pytest.raises(InvalidCircuitFile, match=r"no score for 46 of its edges.*Circuit.from_eap_ig"):
        EdgeScores.from_eap_ig(document)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("cfg"), "no 'cfg'"),
        (lambda d: d.pop("edges"), "no 'edges'"),
        (lambda d: d.pop("nodes"), "no 'nodes'"),
        (lambda d: d["cfg"].pop("n_heads"), "no 'n_heads'"),
        (lambda d: d["cfg"].update(n_layers="2"), "n_layers"),
        (lambda d: d["cfg"].update(n_layers=10**9), "layers"),
        (lambda d: d["cfg"].update(n_layers=9999, n_heads=9999), "can be listed"),
        (lambda d: d["edges"].update({"m1->m0": {"score": 1.0, "in_graph": True}}), "'m1->m0' is no edge"),
        (lambda d: d["edges"]["m0->m1"].update(score="1"), "score"),
        (lambda d: d["edges"]["m0->m1"].update(in_graph=1), "in_graph"),
        (lambda d: d["edges"].update({"m0->m1": 3}), "m0->m1 must be an object"),
        (lambda d: d["nodes"]["m0"].update(neurons=[True]), "'m0' has neurons"),
    ],
)
def test_a_damaged_file_is_refused_with_the_place(tmp_path: Path, change: Any, words: str) -> None:
    document = made_up(PLAIN).top(edges=20).to_eap_ig(d_model=8)
    change(document)
    path = tmp_path / "d.json"
    path.write_text(json.dumps(document), "utf-8")
    for source in (document, path):
        with pytest.raises(InvalidCircuitFile, match=f"not a readable file of EAP-IG.*{words}"):
            Circuit.from_eap_ig(source)
    with pytest.raises(InvalidCircuitFile):
        EdgeScores.from_eap_ig(path)


def test_a_file_of_another_graph_is_refused() -> None:
    document = made_up(PLAIN).to_eap_ig(d_model=8)
    for graph in (GROUPED, dataclasses.replace(PLAIN, layers=3), dataclasses.replace(PLAIN, parallel=True)):
        with pytest.raises(InvalidCircuitFile, match="is of another graph"):
            EdgeScores.from_eap_ig(document, graph=graph)


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, ("unpickled",))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"src_nodes": ["input"]}, "src_nodes"),
        ({"dst_nodes": 3}, "dst_nodes"),
        ({"edges_scores": torch.zeros(7, 14)}, "shape"),
        ({"edges_in_graph": None}, "edges_in_graph"),
        ({"neurons_in_graph": torch.zeros(7, 8)}, "neurons"),
        ({"cfg": None}, "cfg"),
        ({"cfg": Evil()}, "more than plain tensors"),
        ({"edges_scores": torch.zeros(7, 15).to_sparse()}, "shape"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = tmp_path / "c.pt"
    made_up(PLAIN).to_eap_ig(path, d_model=8)
    torch.save(torch.load(path, weights_only=True) | change, path)
    with pytest.raises(InvalidCircuitFile, match=f"(?s)not a readable file of EAP-IG.*{words}"):
        EdgeScores.from_eap_ig(path)


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"{}", pickle.dumps({"cfg": Evil()}), pickle.dumps([1])])
def test_foreign_tensors_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "c.pt"
    path.write_bytes(data)
    with pytest.raises(InvalidCircuitFile):
        Circuit.from_eap_ig(path)


def test_tensors_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InvalidRequest, match=r"needs torch: pip install '\.\[torch\]' in a check"):
        made_up(PLAIN).to_eap_ig(tmp_path / "c.pt", d_model=8)
    made_up(PLAIN).to_eap_ig(tmp_path / "c.json", d_model=8)
    (tmp_path / "c.pt").write_bytes(b"")
    with pytest.raises(InvalidRequest, match="needs torch"):
        Circuit.from_eap_ig(tmp_path / "c.pt")
