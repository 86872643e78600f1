"""Text under a circuit with both kinds of clients and the command, over a made-up engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import GRAPH, FakeEngine
from helpers.fake_generator import decode, whole

from pahq_client import Circuit, Client, InvalidRequest, OtherModel, PahqWarning
from pahq_client.circuit import CircuitMetric
from pahq_client.cli import main
from pahq_client.edge_index import edge_index
from pahq_client.graph import Edge, Graph
from pahq_server.core import circuit as server_circuit
from pahq_server.core.generation import DecodeUnderCircuit
from pahq_server.methods.generate.samples import sample_seed

from .conftest import BACKOFF

PROMPTS, CORRUPTED = [[1, 2, 3], [4, 5]], [[1, 9, 3], [8, 5]]
ASKED: dict[str, Any] = {"n": 2, "max_tokens": 12, "seed": 7, "logprobs": True}


@pytest.fixture
def running() -> Iterator[RunningServer]:
    engine = FakeEngine()
    engine.offer = None  # it needs no backend
    with RunningServer(engine) as server:
        yield server


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.port}"


def made(ablation: str | None = "zero", edges: slice = slice(None), **graph: Any) -> Circuit:
    """Some edges of the fake model, as if found with an ablation."""
    shape = Graph(GRAPH.layers, GRAPH.heads, GRAPH.kv_heads, "group", GRAPH.parallel, GRAPH.mlps)
    shape = replace(shape, **graph)
    index = edge_index(shape)
    names = [Edge(*ends) for ends in index.edges(range(index.num_edges)[edges])]
    request = {"model_revision": "c0ffee", "parameters": {} if ablation is None else {"ablation": ablation}}
    return Circuit(
        tuple(names),
        shape,
        CircuitMetric("l2", 0.0, 0.0, 1.0),
        0,
        GRAPH.num_edges,
        provenance={"request": request},
    )


@pytest.fixture
def seen(running: RunningServer) -> list[DecodeUnderCircuit]:
    """What the engine was asked for."""
    operations: list[DecodeUnderCircuit] = []

    def run(operation: DecodeUnderCircuit) -> object:
        operations.append(operation)
        return decode(operation)

    running.engine.operations[DecodeUnderCircuit] = run
    return operations


def expected() -> list[tuple[int, ...]]:
    return [whole(tuple(ids), sample_seed(7, index), 12).ids for ids in PROMPTS for index in range(2)]


@pytest.mark.parametrize("how", ["generate", "submit_generate", "stream_samples"])
@pytest.mark.parametrize(
    ("found_with", "options", "ablation"),
    [
        ("zero", {}, "zero"),
        ("resample", {"ablation": "zero"}, "zero"),
        ("resample", {"corrupted": CORRUPTED}, "resample"),
        (None, {"corrupted": CORRUPTED}, "resample"),
        ("mean", {"ablation": "zero"}, "zero"),
    ],
)
def test_a_circuit_and_its_ablation_reach_the_engine(
    speaker: Any,
    running: RunningServer,
    seen: list[DecodeUnderCircuit],
    how: str,
    found_with: str | None,
    options: dict[str, Any],
    ablation: str,
) -> None:
    circuit = made(found_with, slice(3, None))
    found = getattr(speaker, how)("toy", PROMPTS, circuit=circuit, **options, **ASKED)
    if how == "submit_generate":
        found = found.result()
    if how == "stream_samples":
        found = sorted(found, key=lambda sample: (sample.prompt_number, sample.index))
    assert [sample.ids for sample in found] == expected()
    assert all((~each.circuit.kept).nonzero()[0].tolist() == [0, 1, 2] for each in seen)
    corrupted = {ids for each in seen for ids in each.corrupted}
    assert corrupted == (set(map(tuple, CORRUPTED)) if ablation == "resample" else set())
    assert running.engine.opened[0].objective.ablation == ablation


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"circuit": made("mean")}, "ablation", "got 'mean': the mean is over the prompts"),
        ({"circuit": made("resample")}, "corrupted", "needs corrupted prompts"),
        ({"circuit": made(), "ablation": "most"}, "ablation", "must be 'zero' or 'resample'"),
        ({"circuit": made(), "ablation": 3}, "ablation", "must be a string"),
        ({"circuit": made(), "max_tokens": 30}, "max_tokens", "the longest prompt, prompts[0], has 3 tokens"),
        ({"circuit": made(), "slots": 2}, "slots", "from 1 to 1 here"),
        ({"circuit": "circuit.json"}, "circuit", "read a file with Circuit.load"),
        ({"circuit": made(), "corrupted": [1, 2]}, "corrupted", "put one list into another list"),
        ({"ablation": "zero"}, "ablation", "give circuit= as well"),
        ({"corrupted": CORRUPTED}, "corrupted", "give circuit= as well"),
        ({"circuit": made(layers=3)}, "circuit", "another model"),
    ],
)
def test_bad_arguments(running: RunningServer, change: dict[str, Any], field: str, words: str) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        for call in (
            lambda: client.generate("toy", PROMPTS, **{**ASKED, **change}),
            lambda: client.submit_generate("toy", PROMPTS, **{**ASKED, **change}),
            lambda: list(client.stream_samples("toy", PROMPTS, **{**ASKED, **change})),
        ):
            with pytest.raises(InvalidRequest) as caught:
                call()
            assert caught.value.field == field
            assert words in caught.value.detail
            assert isinstance(caught.value, OtherModel) == (words == "another model")


def test_the_full_model_still_needs_a_backend(running: RunningServer) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        with pytest.raises(InvalidRequest, match="the abacus does not speak"):
            client.generate("toy", PROMPTS)
        with pytest.warns(PahqWarning, match="does not depend on the prompt"):
            assert len(client.generate("toy", PROMPTS, max_tokens=9, circuit=made(edges=slice(0)))) == 2


def test_what_was_asked_is_kept_without_edges(running: RunningServer) -> None:
    with Client(address(running), backoff=BACKOFF) as client:
        found = client.generate("toy", PROMPTS, circuit=made(), **ASKED)
        assert found.parameters["ablation"] == "zero"
        assert list(found.parameters["circuit"]) == ["sha256"]
        assert found.request["generation"]["backend"] == "pahq"
        assert found.figures["peak_kv_bytes"] == 0


def test_a_circuit_of_names_is_that_of_its_numbers() -> None:
    """The client's order of edges is the server's."""
    circuit = made(edges=slice(5, 9))
    ours = server_circuit.Circuit.from_names(GRAPH, map(str, circuit.edges))
    assert ours.kept.nonzero()[0].tolist() == [5, 6, 7, 8]


def test_the_command(
    running: RunningServer,
    seen: list[DecodeUnderCircuit],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "circuit.json")
    made("resample").save(path)
    plain = ["generate", "--model", "toy", "a", "--server", address(running), "--quiet", "--max-tokens", "9"]
    call = [*plain, "--circuit", path]
    assert main([*call, "--ablation", "zero"]) == 0
    assert capsys.readouterr().out.startswith("# 1 samples of 1 prompt, ")
    assert not seen[-1].corrupted
    assert main([*call, "--corrupted", "b"]) == 0
    assert seen[-1].corrupted == ((1,),)
    assert main(call) == 2
    assert "corrupted: resample ablation needs corrupted prompts" in capsys.readouterr().err
    assert main([*call, "--ablation", "zero", "--detach"]) == 0
    assert main([*plain, "--ablation", "zero"]) == 2
