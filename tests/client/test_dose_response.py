"""Dose-response with both kinds of clients, against the real server's code over a made-up engine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import FakeEngine

from pahq_client import Client, ContinuationScores, InvalidRequest, NeuronSet, OtherModel, ServerFault, Task
from pahq_client.artifacts import decode
from pahq_client.dose_response import DoseRequest, DoseResponse
from pahq_client.neuron_set import Neuron
from pahq_server.core.artifact import pack

pytestmark = pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")

PROMPTS = [[1, 2], [60, 3, 61]]
PAIR = ([4], [70])


@pytest.fixture
def running() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine()) as server:
        yield server


@pytest.fixture
def neurons(running: RunningServer) -> NeuronSet:
    """One planted neuron of either side, so that the layers have others for controls."""
    with Client(f"127.0.0.1:{running.port}") as client:
        return client.locate_neurons("toy", [[1, 2, 3]], [[60, 61]]).top(1)


def test_the_difference_rises_with_the_strength(speaker: Any, neurons: NeuronSet) -> None:
    strengths = [1, -1, 0, 0.5]
    found = speaker.dose_response("toy", neurons, PROMPTS, PAIR, strengths=strengths)
    assert found.strengths == (-1, 0, 0.5, 1)
    assert found.monotone
    assert found.values[1] == 0
    push = neurons.edit(1).amounts[0]
    assert found.values[3] == pytest.approx(math.log1p(math.exp(push)) - math.log1p(math.exp(-push)))
    assert len(found.controls) == 5
    assert all(values[1] == 0 for values in found.controls)
    assert found.effect == found.values[3] - found.values[0] > 0
    assert "log-probability difference changes by" in repr(found)
    assert "5 random sets change it by at most" in found.summary()


def test_a_function_of_samples_scores_what_is_generated(speaker: Any, neurons: NeuronSet) -> None:
    seen: list[Any] = []

    def length(sample: Any) -> float:
        seen.append(sample)
        return len(sample.ids)

    found = speaker.dose_response(
        "toy", neurons, [[1, 2]], length, strengths=(0, 1), generate={"n": 2, "max_tokens": 5}
    )
    assert len(seen) == 2 * (1 + 6)  # without steering once for all
    assert found.score == "mean score"
    with pytest.raises(InvalidRequest, match="not finite"):
        speaker.dose_response("toy", neurons, [[1, 2]], lambda sample: math.nan, strengths=(0, 1))


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({"neurons": "file"}, "neurons", "must be a NeuronSet, got str"),
        ({"strengths": []}, "strengths", "finite numbers, each once"),
        ({"strengths": [1, 1.0]}, "strengths", "each once"),
        ({"strengths": [math.inf]}, "strengths", "finite numbers"),
        ({"strengths": ["x"]}, "strengths[0]", "must be a number"),
        ({"controls": 4}, "controls", "at least 5"),
        ({"seed": -1}, "seed", "from 0 on"),
        ({"scorer": "yes"}, "scorer", "a function of a Sample, or two continuations"),
        ({"scorer": ([1],)}, "scorer", "two continuations"),
        ({"scorer": ([], [1])}, "scorer[0]", "at least one token"),
        ({"scorer": ([1, 2], [1, 2])}, "scorer", r"the same tokens after prompts\[0\]"),
        ({"scorer": (" yes", [1])}, "scorer[0]", "must be token ids"),
        ({"prompts": []}, "prompts", "is empty"),
        ({"generate": {"n": 1}}, "generate", "for a scorer of samples"),
    ],
)
def test_bad_arguments(
    speaker: Any, neurons: NeuronSet, arguments: dict[str, Any], field: str, words: str
) -> None:
    given = {"neurons": neurons, "prompts": PROMPTS, "scorer": PAIR, **arguments}
    with pytest.raises(InvalidRequest, match=words) as caught:
        speaker.dose_response("toy", **given)
    assert caught.value.field == field


def test_sets_that_cannot_steer(speaker: Any, neurons: NeuronSet) -> None:
    with pytest.raises(InvalidRequest, match="holds no neurons"):
        speaker.dose_response("toy", replace(neurons, raised=(), lowered=()), PROMPTS, PAIR)
    other = replace(neurons, provenance={"request": {"model_revision": "badd"}})
    with pytest.raises(OtherModel):
        speaker.dose_response("toy", other, PROMPTS, PAIR)
    larger = replace(neurons, d_mlp=50, raised=(Neuron(1, 49, 0.5, 0.5, 0.0, 0.1, 1.0),))
    with pytest.raises(InvalidRequest) as caught:
        speaker.dose_response("toy", larger, PROMPTS, PAIR)
    assert caught.value.field == "neurons"


def test_texts_are_tokenized_as_they_follow_each_other(speaker: Any, neurons: NeuronSet) -> None:
    found = speaker.dose_response("toy", neurons, ["Say"], ("a", "b"), strengths=(0, 1))
    assert len(found.values) == 2
    with pytest.raises(InvalidRequest, match="adds no token"):
        speaker.dose_response("toy", neurons, ["Say"], ("", "b"), strengths=(0, 1))


def test_continuations_as_a_job_of_their_own(speaker: Any) -> None:
    task = Task(clean=[[1, 2, 3], [4, 70]])
    assert speaker.server_info().methods.index("continuations") >= 0
    with pytest.raises(InvalidRequest):
        speaker.submit("toy", task, method="continuations", parameters={"starts": [1, 1]})


@pytest.mark.parametrize("logprobs", [[math.nan], [0.5], [-math.inf]])
def test_numbers_that_are_no_log_probabilities(logprobs: list[float]) -> None:
    import numpy as np

    header = {"kind": "continuation_scores", "version": 1}
    with pytest.raises(ServerFault, match="log-probability"):
        decode("continuation_scores", 1, pack(header, {"logprobs": np.array(logprobs)}), {})
    found = decode("continuation_scores", 1, pack(header, {"logprobs": np.array([-0.5])}), {})
    assert isinstance(found, ContinuationScores)
    assert found.logprobs == (-0.5,)


def test_the_plot(tmp_path: Path) -> None:
    found = DoseResponse((-1.0, 0.0, 2.0), (-1.5, 0.0, 1.0), ((0.1, 0.0, -0.1),) * 5, "score")
    root = ElementTree.fromstring(found.to_svg())
    assert len(root.findall(".//{*}path") + root.findall(".//{*}polyline")) >= 6
    found.to_svg(tmp_path / "dose.svg")
    assert (tmp_path / "dose.svg").read_text("utf-8") == found.to_svg()
    assert "<td>-1.5</td>" in found._repr_html_()
    assert (found.monotone, found.effect) == (True, 2.5)
    assert found.control_effects == (-0.2,) * 5
    assert not replace(found, values=(0.0, 1.0, 0.5)).monotone


def test_arguments_have_the_defaults_of_the_request() -> None:
    parameters = inspect.signature(Client.dose_response).parameters
    for name in DoseRequest.__dataclass_fields__:
        default = getattr(DoseRequest, name, inspect.Parameter.empty)
        assert parameters[name].default == default, name
