"""Sampling with steered neurons, with both kinds of clients, against the real server's code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import FakeEngine
from helpers.fake_generator import whole
from pahq.v1 import jobs_pb2, methods_pb2

from pahq_client import Circuit, Client, InvalidRequest, NeuronSet, OtherModel, Samples
from pahq_client.cli import main
from pahq_server.core.activations import Steering
from pahq_server.methods.generate.samples import sample_seed

pytestmark = pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")

PROMPTS = [[1, 2, 3], [4, 5]]
ASKED: dict[str, Any] = {"n": 3, "max_tokens": 20, "seed": 7}


@pytest.fixture
def running() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine()) as server:
        yield server


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.port}"


@pytest.fixture
def neurons(running: RunningServer) -> NeuronSet:
    with Client(address(running)) as client:
        return client.locate_neurons("toy", [[1, 2, 3, 9], [4, 5]], [[60, 70], [80, 90]])


def expected(steering: Steering | None) -> list[tuple[int, ...]]:
    return [
        whole(tuple(prompt), sample_seed(7, index), 20, steering).ids
        for prompt in PROMPTS
        for index in range(3)
    ]


def edit(neurons: NeuronSet, strength: float) -> Steering:
    return Steering(**vars(neurons.edit(strength)))


@pytest.mark.parametrize("strength", [2.0, -1.5])
def test_samples_are_steered_by_the_edit_of_the_set(
    speaker: Any, neurons: NeuronSet, strength: float
) -> None:
    known = edit(neurons, strength)
    assert len(known.raised)
    assert len(known.lowered)
    found = speaker.generate("toy", PROMPTS, steer=(neurons, strength), **ASKED)
    assert [each.ids for each in found] == expected(known)
    told = {"raised": len(known.raised), "lowered": len(known.lowered), "sha256": known.digest.hex()}
    assert found.parameters["steering"] == told
    streamed = sorted(
        speaker.stream_samples("toy", PROMPTS, steer=(neurons, strength), **ASKED),
        key=lambda each: (each.prompt_number, each.index),
    )
    assert [each.ids for each in streamed] == expected(known)
    other = neurons.swapped()
    assert speaker.generate("toy", PROMPTS, steer=(other, -strength), **ASKED).items == found.items


def test_strength_0_is_no_steering(speaker: Any, neurons: NeuronSet) -> None:
    plain = speaker.generate("toy", PROMPTS, **ASKED)
    found = speaker.generate("toy", PROMPTS, steer=(neurons, 0), **ASKED)
    assert found.items == plain.items
    assert [each.ids for each in found] == expected(None)
    assert found.provenance["request"] == plain.provenance["request"], "it is the same job"


def test_jobs_of_other_strengths_are_others(speaker: Any, neurons: NeuronSet) -> None:
    found = [speaker.generate("toy", PROMPTS, steer=(neurons, g), **ASKED) for g in (1, 1.0, 2, -1)]
    assert found[0].items == found[1].items
    assert len({each.items for each in found}) == 3


@pytest.mark.parametrize(
    ("steer", "field", "words"),
    [
        ("neurons", "steer", "must be a NeuronSet and a strength, as in (neurons, 2.0), got str"),
        (lambda known: known, "steer", "got NeuronSet"),
        (lambda known: (known,), "steer", "got tuple"),
        (lambda known: (2.0, known), "steer", "got tuple"),
        (lambda known: (known, "much"), "steer[1]", "must be a number"),
        (lambda known: (known, float("nan")), "steer[1]", "finite"),
        (lambda known: (known, float("inf")), "steer[1]", "finite"),
        (lambda known: (known, 1e300), "steer.amounts[0]", "finite number in float32"),
        (lambda known: (replace(known, raised=(), lowered=()), 1.0), "steer[0]", "holds no neurons"),
        (
            lambda known: (replace(known, provenance={"request": {"model_revision": "bad"}}), 1.0),
            "steer",
            "another model",
        ),
        (lambda known: (replace(known, layers=5), 1.0), "steer", "another model"),
    ],
)
def test_bad_arguments(speaker: Any, neurons: NeuronSet, steer: Any, field: str, words: str) -> None:
    given = steer(neurons) if callable(steer) else steer
    calls = (
        lambda: speaker.generate("toy", PROMPTS, steer=given, **ASKED),
        lambda: list(speaker.stream_samples("toy", PROMPTS, steer=given, **ASKED)),
    )
    for call in calls:
        with pytest.raises(InvalidRequest) as caught:
            call()
        assert caught.value.field == field
        assert words in caught.value.detail
        assert isinstance(caught.value, OtherModel) == ("another model" in words)


def test_not_under_a_circuit(speaker: Any, neurons: NeuronSet, circuit: Circuit) -> None:
    with pytest.raises(InvalidRequest, match="does not go with circuit"):
        speaker.generate("toy", PROMPTS, steer=(neurons, 1.0), circuit=circuit)


def test_the_command(
    running: RunningServer, neurons: NeuronSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "value.neurons", tmp_path / "samples"
    neurons.save(path)
    common = ["generate", "--model", "toy", "--server", address(running), "--quiet", "a b", "-n", "3"]
    common += ["--max-tokens", "20", "--seed", "7", "-o", str(out)]
    said = []
    for more in ([], ["--strength", "1"], ["--strength", "-2.5"], ["--strength", "0"]):
        assert main([*common, "--steer", str(path), *more]) == 0
        said.append(Samples.load(out).items)
    assert main(common) == 0
    assert said[3] == Samples.load(out).items
    assert said[0] == said[1]
    assert len(set(said)) == 3
    capsys.readouterr()
    for wrong, words in (
        (["--strength", "1"], "--strength: is that of --steer"),
        (["--steer", str(out)], "holds no neuron set"),
        (["--steer", str(tmp_path / "none")], "none"),
        (["--steer", str(path), "--strength", "nan"], "finite"),
    ):
        assert main([*common, *wrong]) == 2
        assert words in capsys.readouterr().err


def test_what_the_server_tells_of_a_job_leaves_the_neurons_out(
    running: RunningServer, neurons: NeuronSet
) -> None:
    with Client(address(running)) as client:
        job = client.submit_generate("toy", PROMPTS, steer=(neurons, 1.0), **ASKED)
        job.result()
        told = running.job_stub.GetJob(jobs_pb2.GetJobRequest(name=job.name)).job.spec.generate.steering
    assert told == methods_pb2.NeuronSteering(layers=2, d_mlp=6, model_revision="c0ffee")
