"""Circuits of nodes in the client: read as the server writes them, kept in files, and nothing that lies."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pahq.v1 import jobs_pb2

from pahq_client import (
    Circuit,
    InvalidNodeCircuitFile,
    InvalidRequest,
    NodeCircuit,
    NodeFigures,
    NodeOverlap,
    OtherModel,
    PahqError,
    ServerFault,
    Task,
)
from pahq_client._job_options import JobRequest
from pahq_client._requests import job_spec
from pahq_client.artifacts import decode
from pahq_client.cli import main
from pahq_client.node_layout import KIND_NAMES, KINDS
from pahq_client.node_layout import NodeLayout as client_layout
from pahq_client.node_layout import consistent as our_consistent
from pahq_server.core.artifact import pack, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.graph import Graph
from pahq_server.core.pruning import NODE_KINDS, MaskFigures, NodeKind, NodeLayout, consistent, parameters_of
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.node_pruning.artifact import NodeCircuit as Found
from pahq_server.methods.node_pruning.artifact import node_circuit_bytes
from pahq_server.methods.node_pruning.polish import binary

GRAPH = Graph(layers=3, heads=4, kv_heads=2)
LAYOUT = NodeLayout(layers=3, heads=4, d_head=2, d_model=5, d_mlp=6)
RESOLVED = ResolvedObjective(
    Objective("m", PromptTask(()), "kl_divergence", "resample", "group", "fp32"),
    TokenTask(((1, 2),), ((1, 3),)),
    GRAPH,
    "revision",
    nodes=LAYOUT,
)
PROVENANCE: dict[str, Any] = {"request": {"model_revision": "c0ffee"}, "run": {"model": "toy"}}
FIGURES = MaskFigures(0.25, 0.75, 1.5, 1.0)


def found(seed: int = 0, share: float = 0.7) -> Found:
    draw = np.random.default_rng(seed)
    gates = np.where(draw.random(LAYOUT.size) < share**0.5, 1, -1) * (1 + draw.random(LAYOUT.size))
    log_alpha = gates.astype(np.float32)
    trained = binary(LAYOUT, log_alpha, NODE_KINDS)
    kept = consistent(LAYOUT, trained & (draw.random(LAYOUT.size) < share**0.5))
    figures = (MaskFigures(0.0, 1.0), FIGURES, replace(FIGURES, kl=0.1))
    return Found(NODE_KINDS, 60, 0.2, None, log_alpha, trained, kept, *figures, 0.3, True, False)


def read(data: bytes, partial: bool = False) -> NodeCircuit:
    circuit = decode("node_circuit", 1, data, PROVENANCE, partial)
    assert isinstance(circuit, NodeCircuit)
    return circuit


def circuit_of(seed: int = 0, share: float = 0.7) -> NodeCircuit:
    return read(node_circuit_bytes(found(seed, share), RESOLVED, LAYOUT))


def test_it_is_read_as_the_server_writes_it() -> None:
    ours, theirs = circuit_of(), found()
    for kind, mask in LAYOUT.split(theirs.kept).items():
        assert (ours.kept[kind] == mask).all()
        assert (ours.trained[kind] == LAYOUT.split(theirs.trained)[kind]).all()
    assert (ours.log_alpha == theirs.log_alpha).all()
    assert (ours.budget, ours.penalty, ours.steps, ours.stochastic_kl) == (0.2, None, 60, 0.3)
    assert (ours.polished, ours.repaired, ours.partial) == (True, False, False)
    assert ours.figures == NodeFigures(0.1, 0.75, 1.5, 1.0)
    assert ours.full == NodeFigures(0.0, 1.0)
    assert ours.kept_parameters["kept"] == parameters_of(LAYOUT, 2, False, theirs.kept)
    assert ours.kept_parameters["all"] == parameters_of(LAYOUT, 2, False, np.ones(LAYOUT.size, bool))
    assert ours.kinds == NODE_KINDS == KINDS


def test_what_is_kept() -> None:
    circuit = circuit_of()
    assert circuit.heads == tuple(
        f"a{layer}.h{head}" for layer in range(3) for head in range(4) if circuit.kept["heads"][layer, head]
    )
    assert circuit.mlps == tuple(f"m{layer}" for layer in range(3) if circuit.kept["mlp_blocks"][layer, 0])
    per_layer = circuit.nodes_per_layer()
    for kind, (kept, count) in circuit.counts.items():
        assert kept == sum(layer[kind] for layer in per_layer)
        assert count == circuit.kept[kind].size
    assert f"{len(circuit.heads)} of 12 heads" in repr(circuit)
    assert "<td>2</td>" in circuit._repr_html_()


@pytest.mark.parametrize("seed", range(10))
def test_its_edges_are_those_between_kept_heads_and_mlps(seed: int) -> None:
    nodes = circuit_of(seed, 0.5)
    circuit = nodes.to_circuit()
    alive = {"input", "logits", *nodes.heads, *nodes.mlps}
    graph = circuit.graph
    expected = set()
    for name in graph.edge_names():
        sender, receiver = name.split("->")
        behind = {"logits"} if receiver == "logits" else set(graph.senders_behind(receiver))
        if sender in alive and behind & alive:
            expected.add(name)
    assert {str(edge) for edge in circuit.edges} == expected
    assert isinstance(circuit, Circuit)
    assert math.isnan(circuit.metric.value)


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    circuit, path = circuit_of(), tmp_path / "c.nodes"
    circuit.save(path)
    again = NodeCircuit.load(path)
    assert again.summary() == circuit.summary()
    assert again.provenance == circuit.provenance
    assert all((again.kept[kind] == mask).all() for kind, mask in circuit.kept.items())
    again.save(tmp_path / "d.nodes")
    assert (tmp_path / "d.nodes").read_bytes() == path.read_bytes()
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert circuit.heads[0] in out
    assert main(["show", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["figures"]["kl"] == 0.1
    page = tmp_path / "page.html"
    assert main(["view", "--no-open", str(path), "--output", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert main(["view", "--no-open", str(path), str(path)]) == 2
    assert "pahq compare" in capsys.readouterr().err
    for command in (["curve"], ["compare", str(tmp_path / "c.json")]):
        (tmp_path / "c.json").write_bytes(circuit.to_circuit().canonical_bytes())
        more = ["--model", "m", "--task", "ioi"] if command == ["curve"] else []
        assert main([*command, str(path), *more]) == 2
        assert "holds nodes, not edges" in capsys.readouterr().err


def test_equal_jobs_give_equal_circuits(tmp_path: Path) -> None:
    circuit = circuit_of()
    later = replace(circuit, provenance={**circuit.provenance, "run": {"model": "later"}})
    circuit.save(tmp_path / "a")
    assert NodeCircuit.load(tmp_path / "a") == circuit == later
    assert hash(circuit) == hash(later)
    others = (
        circuit_of(1),
        replace(circuit, kept=circuit.trained),
        replace(circuit, steps=61),
        replace(circuit, log_alpha=-circuit.log_alpha),
        replace(circuit, figures=NodeFigures(0.2, 0.75)),
        replace(circuit, partial=True),
    )
    assert all(other != circuit for other in others)
    assert circuit != "circuit"


def test_every_node_has_its_name() -> None:
    layout = circuit_of().layout
    every = np.ones(layout.size, bool)
    names = {kind: layout.names(kind, mask) for kind, mask in layout.split(every).items()}
    assert len({name for own in names.values() for name in own}) == layout.size
    assert names["heads"] == tuple(f"a{layer}.h{head}" for layer in range(3) for head in range(4))
    assert names["attention_neurons"][:3] == ("a0.h0.n0", "a0.h0.n1", "a0.h1.n0")
    assert names["attention_neurons"][-1] == "a2.h3.n1"
    assert (names["mlp_hidden"][7], names["mlp_outputs"][7]) == ("m1.u1", "m1.o2")
    assert (names["attention_blocks"], names["mlp_blocks"]) == (("a0", "a1", "a2"), ("m0", "m1", "m2"))
    assert names["layers"] == ("layer 0", "layer 1", "layer 2")


@pytest.mark.parametrize("seed", range(5))
def test_kept_and_trained_nodes_are_named(seed: int) -> None:
    circuit = circuit_of(seed)
    for kind, mask in circuit.kept.items():
        every = circuit.layout.names(kind, np.ones_like(mask))
        assert circuit.nodes(kind) == tuple(np.array(every)[mask.ravel()])
        assert circuit.nodes(kind, trained=True) == tuple(np.array(every)[circuit.trained[kind].ravel()])
    for kind in ("toes", 3, None, ["heads"]):
        with pytest.raises(InvalidRequest, match="unknown kind of node"):
            circuit.nodes(kind)  # type: ignore[arg-type]


@settings(max_examples=300)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.8, 0.95]), st.sampled_from([0, 6]))
def test_a_circuit_is_what_the_server_makes_consistent(seed: int, share: float, d_mlp: int) -> None:
    theirs = replace(LAYOUT, d_mlp=d_mlp)
    mask = np.random.default_rng(seed).random(theirs.size) < share
    before = mask.copy()
    assert (our_consistent(client_layout(**asdict(theirs)), mask) == consistent(theirs, mask)).all()
    assert (mask == before).all()


@settings(max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sets(st.sampled_from(NODE_KINDS), min_size=1))
def test_whichever_kinds_were_pruned_the_circuit_is_read(seed: int, chosen: set[NodeKind]) -> None:
    draw = np.random.default_rng(seed)
    kinds = [kind for kind in NODE_KINDS if kind in chosen]
    log_alpha = draw.normal(1, 1, LAYOUT.size).astype(np.float32)
    trained = binary(LAYOUT, log_alpha, kinds)
    gone = np.zeros(LAYOUT.size, bool)
    for kind, part in LAYOUT.slices():
        gone[part] = kind in chosen and draw.random(part.stop - part.start) < 0.2
    kept = consistent(LAYOUT, trained & ~gone)
    job = replace(found(), kinds=kinds, log_alpha=log_alpha, trained=trained, kept=kept)
    circuit = read(node_circuit_bytes(job, RESOLVED, LAYOUT))
    assert circuit.kinds == tuple(kinds)
    assert all((circuit.kept[kind] == mask).all() for kind, mask in LAYOUT.split(kept).items())


def titles_of(circuit: NodeCircuit) -> list[str]:
    """What the parts of the picture say of themselves, the first layer first."""
    titles = []
    for layer in range(3):
        neurons = circuit.kept["attention_neurons"][layer].reshape(4, 2).sum(1)
        titles += [f"a{layer}.h{head}: {count} of 2 neurons" for head, count in enumerate(neurons)]
        for kind in ("attention_neurons", "mlp_hidden", "mlp_outputs"):
            if circuit.kept[kind].size:
                trained, kept = circuit.trained[kind][layer].sum(), circuit.kept[kind][layer].sum()
                words = f"layer {layer}, {KIND_NAMES[kind]}: training kept {trained}, now {kept}"
                titles.append(words)
    return titles


def drawn_titles(text: str) -> list[str]:
    return re.findall(r"<g><title>(.*?)</title>", text)


def test_the_picture(tmp_path: Path) -> None:
    circuit, path = circuit_of(), tmp_path / "nodes.svg"
    text = circuit.to_svg()
    assert drawn_titles(text) == titles_of(circuit)
    assert f"<title>{len(circuit.heads)} of 12 heads</title>" in text
    top = {layer: float(y) for y, layer in re.findall(r'y="([\d.]+)"[^>]*>layer (\d)<', text)}
    assert top["2"] < top["1"] < top["0"]
    for head in range(12):
        there, before = (mask["heads"].ravel()[head] for mask in (circuit.kept, circuit.trained))
        own = text.split("<g><title>a")[1 + head].partition("</g>")[0]
        assert ('fill-opacity=".32"' in own) == there
        assert ("dasharray" in own) == (before and not there)
    circuit.to_svg(path)
    assert path.read_text("utf-8") == text
    ElementTree.fromstring(text)
    (image,) = re.findall(r'src="data:image/svg\+xml;base64,(.*?)"', circuit._repr_html_())
    assert base64.b64decode(image).decode() == text


def test_bars_are_as_long_as_what_is_kept() -> None:
    circuit = circuit_of()
    (width,) = set(re.findall(r'height="9" rx="2" width="([\d.]+)" fill="#ffffff"', circuit.to_svg()))
    for layer in range(3):
        text = circuit.to_svg().partition(f"<title>layer {layer}, MLP hidden units")[2].partition("</g>")[0]
        lengths = [float(each) / float(width) for each in re.findall(r' width="([\d.]+)" fill="#0', text)]
        counts = (mask["mlp_hidden"][layer].sum() for mask in (circuit.trained, circuit.kept))
        assert lengths == pytest.approx([count / 6 for count in counts if count], abs=0.01)


def test_a_picture_of_too_many_heads_is_refused(tmp_path: Path) -> None:
    layout = client_layout(201, 100, 1, 1, 0)
    every = layout.split(np.ones(layout.size, bool))
    circuit = replace(circuit_of(), layout=layout, kept=every, trained=every)
    with pytest.raises(InvalidRequest, match="has 20100 heads; a picture takes at most 20000"):
        circuit.to_svg()
    assert "<img" not in circuit._repr_html_()
    circuit.to_html(tmp_path / "page.html")
    assert "a picture takes at most 20000" in (tmp_path / "page.html").read_text("utf-8")


def test_the_page(tmp_path: Path) -> None:
    circuit, path = circuit_of(), tmp_path / "page.html"
    circuit.to_html(path)
    text = path.read_text("utf-8")
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text
    assert "<script" not in text
    assert "http://" not in text
    assert drawn_titles(text) == titles_of(circuit)
    for words in ("KL within 0.2", "0.1", "75.0%", "60 steps", "polished"):
        assert words in text
    for target in (tmp_path, tmp_path / "nowhere" / "page.html"):
        with pytest.raises(InvalidRequest):
            circuit.to_html(target)


def test_pages_and_notebooks_escape_what_is_foreign(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\x1b"
    run = {"model": evil, "warnings": [evil], "task": {"name": evil}}
    request = {"policy": evil, "parameters": {"ablation": evil, "seed": evil}, "model_revision": evil}
    circuit = replace(circuit_of(), provenance={"run": run, "request": request})
    circuit.to_html(tmp_path / "page.html")
    for text in ((tmp_path / "page.html").read_text("utf-8"), circuit._repr_html_(), repr(circuit)):
        assert "\x1b" not in text
    for text in ((tmp_path / "page.html").read_text("utf-8"), circuit._repr_html_()):
        assert "<script" not in text
        assert "alert(1)" in text


def test_a_partial_circuit_is_shown_as_such(tmp_path: Path) -> None:
    job = replace(found(), full=None, of_trained=None, of_kept=None, kept=found().trained, polished=False)
    circuit = read(node_circuit_bytes(job, RESOLVED, LAYOUT), partial=True)
    assert circuit.summary().endswith("partial")
    circuit.to_html(tmp_path / "page.html")
    assert "not measured" in (tmp_path / "page.html").read_text("utf-8")


def test_models_without_mlps(tmp_path: Path) -> None:
    layout, graph = replace(LAYOUT, d_mlp=0), replace(GRAPH, mlps=False)
    every = np.ones(layout.size, dtype=bool)
    job = replace(found(), kinds=layout.kinds, log_alpha=np.ones(layout.size, np.float32))
    job = replace(job, trained=every, kept=every)
    resolved = replace(RESOLVED, graph=graph, nodes=layout)
    circuit = read(node_circuit_bytes(job, resolved, layout))
    assert circuit.mlps == circuit.nodes("mlp_hidden") == ()
    assert len(circuit.heads) == 12
    assert len(circuit.to_circuit().edges) == circuit.graph.num_edges
    assert list(circuit.nodes_per_layer()[0]) == ["heads", "attention_neurons", "attention_blocks", "layers"]
    assert drawn_titles(circuit.to_svg()) == titles_of(circuit)
    circuit.to_html(tmp_path / "page.html")
    assert "MLP" not in (tmp_path / "page.html").read_text("utf-8").partition("</style>")[2]
    circuit.save(tmp_path / "c")
    assert NodeCircuit.load(tmp_path / "c") == circuit


def test_what_is_partial_is_not_read_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "c.nodes"
    read(node_circuit_bytes(found(), RESOLVED, LAYOUT), partial=True).save(path)
    with pytest.raises(InvalidNodeCircuitFile, match="allow_partial=True"):
        NodeCircuit.load(path)
    assert NodeCircuit.load(path, allow_partial=True).partial


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x08\0\0\0\0\0\0\0{}      "])
def test_files_of_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(InvalidNodeCircuitFile, match="not a readable file of a node circuit"):
        NodeCircuit.load(path)


def test_comparison() -> None:
    a, b = circuit_of(0), circuit_of(1)
    overlap = a.compare(b)
    for kind, own in overlap.items():
        assert own.both + own.only_a == a.counts[kind][0]
        assert own.both + own.only_b == b.counts[kind][0]
        union = (a.kept[kind] | b.kept[kind]).sum()
        assert own.jaccard == pytest.approx(own.both / union)
    assert all(own.jaccard == 1 for own in a.compare(a).values())
    assert NodeOverlap(0, 0, 0).jaccard == 1
    for wrong in ("c.nodes", 3, a.to_circuit()):
        with pytest.raises(InvalidRequest, match="must be a NodeCircuit"):
            a.compare(wrong)  # type: ignore[arg-type]
    with pytest.raises(OtherModel, match="of other sizes"):
        a.compare(replace(b, layout=replace(b.layout, d_head=3)))
    other = replace(b, provenance={"request": {"model_revision": "decaf"}, "run": {}})
    with pytest.raises(OtherModel):
        a.compare(other)
    assert a.compare(other, allow_other_model=True) == overlap


# Servers that lie


def toggled(bits: Any, kind: str) -> Any:
    """Bits with another first node of a kind."""
    mask = np.unpackbits(bits, bitorder="little")
    mask[dict(LAYOUT.slices())[kind].start] ^= 1  # type: ignore[index]
    return np.packbits(mask, bitorder="little")


DATA = node_circuit_bytes(found(), RESOLVED, LAYOUT)


def changed(change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    header, arrays = unpack(DATA)
    change(header, arrays)
    return pack(header, arrays)


LIES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "too few bits": lambda header, arrays: arrays.update(kept=arrays["kept"][:-1]),
    "stray bits": lambda header, arrays: arrays.update(kept=arrays["kept"] | 255),
    "no trained": lambda header, arrays: arrays.pop("trained"),
    "floats as bits": lambda header, arrays: arrays.update(kept=arrays["kept"].astype(np.float32)),
    "double log_alpha": lambda header, arrays: arrays.update(log_alpha=arrays["log_alpha"].astype(float)),
    "short log_alpha": lambda header, arrays: arrays.update(log_alpha=arrays["log_alpha"][1:]),
    "opposite log_alpha": lambda header, arrays: arrays.update(log_alpha=-arrays["log_alpha"]),
    "pruned nodes of another kind": lambda header, arrays: header.update(kinds=["layers"]),
    "kept nodes of another kind": lambda header, arrays: (
        header.update(kinds=["heads"], repaired=True),
        arrays.update(trained=np.packbits(binary(LAYOUT, arrays["log_alpha"], ["heads"]), bitorder="little")),
    ),
    "no layout": lambda header, arrays: header.pop("model_layout"),
    "no layers": lambda header, arrays: header["model_layout"].update(layers=0),
    "huge": lambda header, arrays: header["model_layout"].update(d_mlp=1 << 40),
    "true layers": lambda header, arrays: header["model_layout"].update(layers=True),
    "other graph": lambda header, arrays: header["graph"].update(heads=5, kv_heads=5),
    "unknown kind": lambda header, arrays: header.update(kinds=["toes"]),
    "text as KL": lambda header, arrays: header["figures"].update(kl="small"),
    "no KL": lambda header, arrays: header["figures"].update(kl=None),
    "figures as list": lambda header, arrays: header.update(full=[1.0]),
    "more than all": lambda header, arrays: header["kept_parameters"].update(kept=10**9),
    "a part alone": lambda header, arrays: arrays.update(kept=toggled(arrays["kept"], "heads")),
    "a block alone": lambda header, arrays: arrays.update(trained=toggled(arrays["trained"], "mlp_blocks")),
    "a layer alone": lambda header, arrays: arrays.update(kept=toggled(arrays["kept"], "layers")),
    "more than trained": lambda header, arrays: arrays.update(kept=arrays["trained"], trained=arrays["kept"]),
    "gone without polish": lambda header, arrays: header.update(polished=False),
    "infinite log_alpha": lambda header, arrays: arrays.update(log_alpha=arrays["log_alpha"] * np.inf),
    "flat log_alpha": lambda header, arrays: arrays.update(log_alpha=arrays["log_alpha"][None]),
    "wrong receivers": lambda header, arrays: header["graph"].update(kv_receivers="some"),
    "odd groups": lambda header, arrays: header["graph"].update(kv_heads=3),
    "no groups": lambda header, arrays: header["graph"].update(kv_heads=0),
    "no kinds": lambda header, arrays: header.update(kinds=[]),
    "a kind twice": lambda header, arrays: header.update(kinds=["heads", "heads"]),
    "a list as kind": lambda header, arrays: header.update(kinds=[["heads"]]),
    "no figures": lambda header, arrays: header.update(figures=None),
    "no full model": lambda header, arrays: header.pop("full"),
    "a share above 1": lambda header, arrays: header["figures"].update(exact_match=1.5),
    "a share below 0": lambda header, arrays: header["figures"].update(accuracy=-0.5),
    "accuracy alone": lambda header, arrays: header["figures"].update(logit_difference=None),
    "a huge KL": lambda header, arrays: header["figures"].update(kl=10**400),
    "budget and penalty": lambda header, arrays: header.update(penalty=1.0),
    "no limit": lambda header, arrays: header.update(budget=None),
    "a budget of 0": lambda header, arrays: header.update(budget=0),
    "repaired without budget": lambda header, arrays: header.update(budget=None, penalty=1, repaired=True),
    "steps below 0": lambda header, arrays: header.update(steps=-1),
    "steps without end": lambda header, arrays: header.update(steps=10**300),
    "weights without end": lambda header, arrays: header["kept_parameters"].update(all=10**300),
    "polished as number": lambda header, arrays: header.update(polished=1),
    "steps as text": lambda header, arrays: header.update(steps="many"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused(lie: str) -> None:
    with pytest.raises(ServerFault):
        read(changed(LIES[lie]))


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(ServerFault, match="update pahq"):
        decode("node_circuit", 2, DATA, PROVENANCE)


@settings(max_examples=200)
@given(st.data())
def test_damaged_bytes_raise_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(DATA)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
    except PahqError:
        return


# Requests

TASK = Task(clean=[[1, 2]], corrupted=[[1, 3]])


def prune_spec(**arguments: Any) -> jobs_pb2.JobSpec:
    return job_spec(JobRequest("m", TASK, method="node_pruning", **arguments))


def test_what_is_asked_for() -> None:
    spec = prune_spec(penalty=0.5, steps=7, kinds=["heads", "layers"], seed=3, polish=False)
    assert isinstance(spec, jobs_pb2.JobSpec)
    own = spec.node_pruning
    assert (own.penalty, own.steps, list(own.kinds), own.seed) == (0.5, 7, ["heads", "layers"], 3)
    assert own.no_polish
    assert not own.HasField("max_kl")
    assert (spec.objective.metric, spec.objective.ablation) == ("kl_divergence", "resample")
    assert prune_spec(max_kl=0.1, kv_receivers="query").objective.kv_receivers == "query"
    assert list(prune_spec(max_kl=0.1, kinds="heads").node_pruning.kinds) == ["heads"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "exactly one of max_kl and penalty is needed, got neither"),
        ({"max_kl": 0.1, "penalty": 1.0}, "got both"),
        ({"max_kl": "little"}, "max_kl"),
        ({"max_kl": 0.1, "steps": 0}, "at least 1"),
        ({"max_kl": 0.1, "steps": 1.5}, "steps"),
        ({"max_kl": 0.1, "kinds": ["toes"]}, "unknown kind of node 'toes'"),
        ({"max_kl": 0.1, "polish": 1}, "polish"),
        ({"max_kl": 0.0}, "max_kl: must be a number above 0, got 0"),
        ({"max_kl": math.nan}, "above 0, got nan"),
        ({"penalty": -1}, "penalty: must be a number above 0, got -1"),
        ({"penalty": math.inf}, "above 0, got inf"),
        ({"max_kl": 0.1, "seed": -1}, "from 0 on, got -1"),
        ({"max_kl": 0.1, "seed": 1 << 63}, "does not fit into 64 bits"),
        ({"max_kl": 0.1, "steps": 1 << 31}, "does not fit into 32 bits"),
        ({"max_kl": 0.1, "task_loss": math.nan}, "task_loss: must be a finite number"),
        ({"max_kl": 0.1, "kinds": []}, "kinds: is empty"),
        ({"max_kl": 0.1, "kinds": [3]}, r"kinds\[0\]: unknown kind of node 3"),
        ({"max_kl": 0.1, "kinds": {"heads"}}, "kinds: must be a list"),
        ({"max_kl": 0.1, "edges": 5}, "edges: is not for method 'node_pruning', but for 'acdc'"),
        ({"max_kl": 0.1, "threshold": 0.5}, "threshold: is not for method 'node_pruning'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_sent(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        prune_spec(**arguments)
