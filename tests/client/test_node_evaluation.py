"""A circuit of nodes, measured on other prompts."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pahq.v1 import patching_pb2

from pahq_client import Client, InvalidRequest, NodeEvaluation, NodeFigures, OtherModel, ServerFault
from pahq_client.cli import main

from .fake_server import Code, FakeServer, Fault
from .test_node_circuit import LAYOUT, PROVENANCE, circuit_of, found

ASKED = {"parameters": {"ablation": "mean"}, "policy": "bf16", "model_revision": "c0ffee"}


def test_a_circuit_is_measured_as_it_was_found(client: Client, server: FakeServer) -> None:
    circuit = replace(circuit_of(3), provenance={"request": ASKED})
    evaluation = client.evaluate("demo", "ioi", circuit)
    figures = [NodeFigures(kl, 0.5) for kl in (1.0, 0.0, 4.0)]
    assert evaluation == NodeEvaluation(*figures, "demo", "mean", "bf16")
    (request,) = server.called("EvaluateNodes")
    (nodes,) = request.circuits
    bits = np.unpackbits(np.frombuffer(nodes.bits, np.uint8), bitorder="little")[: LAYOUT.size]
    assert (bits == found(3).kept).all()
    assert (nodes.layout.layers, nodes.layout.heads, nodes.layout.d_head) == (3, 4, 2)
    assert (nodes.layout.d_model, nodes.layout.d_mlp, nodes.model_revision) == (5, 6, "c0ffee")
    assert request.objective.metric == "kl_divergence"


def test_the_caller_decides(client: Client, server: FakeServer) -> None:
    client.evaluate("demo", "ioi", circuit_of(), ablation="zero", precision="fp32", allow_other_model=True)
    (request,) = server.called("EvaluateNodes")
    assert (request.objective.ablation, request.objective.precision) == ("zero", "fp32")
    assert request.circuits[0].model_revision == ""
    with pytest.raises(InvalidRequest, match="Leave it out"):
        client.evaluate("demo", "ioi", circuit_of(), metric="l2")
    assert len(server.called("EvaluateNodes")) == 1


def test_another_model_is_named(client: Client, server: FakeServer) -> None:
    known = {"circuit": "revision c0ffee", "model": "revision decaf"}
    fault = Fault(Code.INVALID_ARGUMENT, "m", "OTHER_MODEL", known, ("circuits[0]", "it was found elsewhere"))
    server.faults["EvaluateNodes"] = [fault]
    with pytest.raises(OtherModel, match="it was found elsewhere") as raised:
        client.evaluate("demo", "ioi", circuit_of())
    assert (raised.value.field, raised.value.circuit) == ("circuit", "revision c0ffee")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"values": []}, "the figures of 0 circuits, asked for 1"),
        ({"values": [patching_pb2.NodeFigures()] * 2}, "the figures of 2 circuits"),
        ({"values": [patching_pb2.NodeFigures(kl=math.nan)]}, "nan as kl of the circuit"),
        ({"full": patching_pb2.NodeFigures(exact_match=math.inf)}, "inf as exact_match of the full model"),
        ({"empty": patching_pb2.NodeFigures(accuracy=-math.inf)}, "-inf as accuracy of the empty circuit"),
        ({"warnings": ["x"] * 20_000}, "20000 warnings"),
    ],
)
def test_answers_are_checked(client: Client, server: FakeServer, changes: dict[str, Any], words: str) -> None:
    answer = patching_pb2.EvaluateNodesResponse(**({"values": [patching_pb2.NodeFigures()]} | changes))
    server.replies["EvaluateNodes"] = lambda request, context: answer
    with pytest.raises(ServerFault, match=words):
        client.evaluate("demo", "ioi", circuit_of())


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    circuit_of().save(tmp_path / "ioi.nodes")
    asked = ["evaluate", "--circuit", f"{tmp_path / 'ioi.nodes'}", "--model", "demo", "--task", "ioi"]
    main([*asked, "--server", server.address, *(["--json"] if as_json else [])])
    out = capsys.readouterr().out
    if as_json:
        assert json.loads(out)["figures"]["kl"] == 1.0
    else:
        assert "KL 1, exact match 50.0%" in out
    (nodes,) = server.called("EvaluateNodes")[0].circuits
    assert nodes.model_revision == PROVENANCE["request"]["model_revision"]
