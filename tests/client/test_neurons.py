"""Locating neurons with both kinds of clients, against the real server's code over a made-up engine."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import RunningServer
from helpers.fake_engine import FakeEngine

from pahq_client import (
    Client,
    InvalidRequest,
    NeuronSet,
    NotFound,
    PahqWarning,
    Samples,
    ServerFault,
    Task,
    locate_neurons,
)
from pahq_client.cli import main
from pahq_client.locating import LocateRequest

pytestmark = pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")

POSITIVE = [[1, 2, 3, 9], [4, 5, 6]]
NEGATIVE = [[60, 70], [80, 90, 99, 61, 62]]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAHQ_SERVER", "PAHQ_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def running(engine: FakeEngine) -> Iterator[RunningServer]:
    with RunningServer(engine) as server:
        yield server


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.port}"


def test_planted_neurons_are_found(speaker: Any, engine: FakeEngine) -> None:
    seen: list[Any] = []
    found = speaker.locate_neurons("toy", POSITIVE, NEGATIVE, progress=seen.append)
    assert isinstance(found, NeuronSet)
    assert engine.neurons is not None
    assert sorted(found.numbers(found.raised)) == engine.neurons.raised.tolist()
    assert sorted(found.numbers(found.lowered)) == engine.neurons.lowered.tolist()
    assert (found.layers, found.d_mlp, found.texts, found.tokens) == (2, 6, (2, 2), (7, 7))
    assert (found.model, found.model_revision) == ("toy", "c0ffee")
    assert seen[-1].progress.unit == "texts"
    assert found.prompts == (tuple(map(tuple, POSITIVE)), tuple(map(tuple, NEGATIVE)))
    assert speaker.locate_neurons("toy", POSITIVE, NEGATIVE) == found
    assert speaker.locate_neurons("toy", NEGATIVE, POSITIVE).raised == found.swapped().raised


def test_every_way_to_ask_gives_the_same(speaker: Any, running: RunningServer) -> None:
    asked: dict[str, Any] = {"top_k": 1, "min_delta": 0.5}
    found = speaker.locate_neurons("toy", POSITIVE, NEGATIVE, tokens="last", **asked)
    task = Task(clean=[*POSITIVE, *NEGATIVE])
    asked |= {"positive": 2, "starts": [-1] * 4, "method": "neurons"}
    assert speaker.submit("toy", task, include_prompts=True, **asked).result() == found
    assert speaker.discover("toy", task, **asked) == found
    assert speaker.estimate("toy", task, **asked).most_seconds > 0
    again = locate_neurons(
        "toy", POSITIVE, NEGATIVE, tokens="last", top_k=1, min_delta=0.5, server=address(running)
    )
    assert again == found
    assert (len(found.raised), found.tokens, found.counted) == (1, (2, 2), "last")


def test_texts_that_are_generated_first(speaker: Any) -> None:
    found = speaker.locate_neurons(
        "toy", [[1, 2]], [[3, 4], [5]], tokens="generated", generate={"n": 3, "max_tokens": 4, "seed": 1}
    )
    sides = [speaker.generate("toy", each, n=3, max_tokens=4, seed=1) for each in ([[1, 2]], [[3, 4], [5]])]
    assert found.texts == (3, 6)
    assert found.tokens == tuple(sum(len(sample.ids) for sample in side) for side in sides)
    assert speaker.locate_neurons("toy", *sides, tokens="generated") == found
    assert speaker.locate_neurons("toy", sides[0], [[60]], tokens="all").texts == (3, 1)
    with pytest.raises(InvalidRequest, match="both sides are samples already"):
        speaker.locate_neurons("toy", *sides, tokens="generated", generate={"n": 2})


def test_long_texts_are_divided(speaker: Any, engine: FakeEngine) -> None:
    """The model has a context of 10 tokens. Places are those in the text as it was given."""
    long = [1 + i % 40 for i in range(25)]
    found = speaker.locate_neurons("toy", [long, [3]], NEGATIVE, long_texts="split", overlap=4)
    assert [len(ids) for ids in engine.opened[-1].task.clean] == [10, 10, 10, 7, 1, 2, 5]
    assert (found.texts, found.tokens) == ((2, 2), (26, 7))
    assert found.prompts is not None
    assert found.prompts[0] == (tuple(long), (3,))
    places = [place for neuron in found.raised for place in neuron.places]
    assert max(place.position for place in places) > 10
    table = engine.neurons._table  # type: ignore[union-attr]
    for neuron in found.raised:
        number = neuron.layer * 6 + neuron.unit
        for place in neuron.places:
            token = found.prompts[0][place.text][place.position]
            assert 1 <= place.value / table[token, number] < 1.1
    last = speaker.locate_neurons("toy", [long], NEGATIVE, long_texts="split", tokens="last", overlap=4)
    assert last.tokens == (1, 2)
    assert last.raised[0].places[0].position == 24
    words = speaker.locate_neurons("toy", ["abcdefghijklmnop"], NEGATIVE, long_texts="split", overlap=2)
    assert words.tokens == (17, 7)
    assert words.prompts == (("abcdefghijklmnop",), tuple(map(tuple, NEGATIVE)))


def test_contexts_are_shown_in_words(speaker: Any) -> None:
    found = speaker.locate_neurons("toy", ["abc", "x"], NEGATIVE)  # the engine has a token 1 for any text
    contexts = [context for neuron in found.raised for context in found.contexts(neuron)]
    assert {context.prompt for context in contexts} == {"abc", "x"}
    assert {context.token for context in contexts} == {"<s>"}
    assert {context.after for context in contexts} == {("a", "b", "c"), ("x",)}
    bare = speaker.locate_neurons("toy", ["abc"], NEGATIVE, include_prompts=False)
    assert bare.prompts is None
    assert bare.contexts(bare.raised[0])[0].prompt is None


@pytest.mark.parametrize(
    ("arguments", "field", "words"),
    [
        ({"positive": []}, "positive", "is empty"),
        ({"negative": []}, "negative", "is empty"),
        ({"negative": [[1], "a", 3]}, "negative[2]", "must be text or a list"),
        ({"tokens": "some"}, "tokens", "one of all, last, generated"),
        ({"tokens": 3}, "tokens", "must be a string"),
        ({"long_texts": "cut"}, "long_texts", "one of refuse, split"),
        ({"overlap": -1}, "overlap", "from 0 on"),
        ({"overlap": 10, "long_texts": "split"}, "overlap", "less than the model's context of 10"),
        ({"top_k": 0}, "top_k", "from 1 on"),
        ({"top_k": 20_000}, "top_k", "from 1 to 10000"),
        ({"min_delta": 0.0}, "min_delta", "above 0"),
        ({"min_delta": float("nan")}, "min_delta", "above 0"),
        ({"generate": {"n": 3}}, "generate", "for tokens='generated'"),
        ({"generate": {"m": 3}, "tokens": "generated"}, "generate", "'m', which is no argument"),
        ({"generate": 3, "tokens": "generated"}, "generate", "must be a dictionary"),
        ({"positive": [], "tokens": "generated"}, "positive", "is empty"),
        ({"precision": "int8"}, "precision", "rounds activations|unknown precision"),
    ],
)
def test_bad_arguments(speaker: Any, arguments: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        speaker.locate_neurons("toy", **{"positive": POSITIVE, "negative": NEGATIVE, **arguments})
    assert caught.value.field == field


def test_what_does_not_belong_together(speaker: Any) -> None:
    task = Task(clean=POSITIVE)
    with pytest.raises(InvalidRequest, match="not for method 'acdc', but for 'neurons'"):
        speaker.discover("toy", task, 0.1, min_delta=0.5)
    with pytest.raises(InvalidRequest, match=r"use locate_neurons\(\)"):
        speaker.attribute("toy", task, "neurons")
    with pytest.raises(InvalidRequest, match="positive: is needed"):
        speaker.submit("toy", task, method="neurons")
    with pytest.raises(InvalidRequest, match="positive: must be less than the number of texts"):
        speaker.submit("toy", task, method="neurons", positive=2)
    with pytest.raises(InvalidRequest, match=r"starts\[1\]: must be a position"):
        speaker.submit("toy", task, method="neurons", positive=1, starts=[0, 7])
    with pytest.raises(InvalidRequest, match="starts: is empty"):
        speaker.submit("toy", task, method="neurons", positive=1, starts=[])
    for long_texts in ("split", "refuse"):
        with pytest.raises(NotFound):
            speaker.locate_neurons("other", POSITIVE, NEGATIVE, long_texts=long_texts)


@pytest.mark.filterwarnings("default::pahq_client.PahqWarning")
def test_few_texts_are_warned_about(speaker: Any) -> None:
    with pytest.warns(PahqWarning, match="only 2 positive and 2 negative texts"):
        speaker.locate_neurons("toy", POSITIVE, NEGATIVE)


def test_another_artifact_is_a_fault_of_the_server(speaker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pahq_client._server_calls.NeuronSet", Samples)
    with pytest.raises(ServerFault, match="sent a NeuronSet, asked for a neuron set"):
        speaker.locate_neurons("toy", POSITIVE, NEGATIVE)


def test_arguments_have_the_defaults_of_the_request() -> None:
    for function in (Client.locate_neurons, locate_neurons):
        parameters = inspect.signature(function).parameters
        for name in LocateRequest.__dataclass_fields__:
            default = getattr(LocateRequest, name, inspect.Parameter.empty)
            assert parameters[name].default == default, name


def test_the_command(running: RunningServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    positive, negative = tmp_path / "p.jsonl", tmp_path / "n.json"
    positive.write_text("[1, 2, 3]\n\n[4, 5]\n", "utf-8")
    negative.write_text('[[60, 61], {"text": "abc"}]', "utf-8")
    out = tmp_path / "value.neurons"
    common = ["neurons", "toy", "--server", address(running), "--quiet"]
    files = ["--positive", str(positive), "--negative", str(negative)]
    assert main([*common, *files, "--out", str(out), "--top-k", "1"]) == 0
    assert "1 neurons raised" in capsys.readouterr().out
    assert NeuronSet.load(out).top_k == 1
    assert main([*common, *files, "--json", "--no-prompts", "--tokens", "last"]) == 0
    assert json.loads(capsys.readouterr().out)["counted"] == "last"
    assert main([*common, *files, "--tokens", "generated", "-n", "2", "--max-tokens", "3"]) == 0
    assert "4 positive and 4 negative texts" in capsys.readouterr().out
    for name, text in (("x.txt", "one\ntwo\n"), ("x.jsonl", "nonsense"), ("x.json", "{}"), ("y.json", "[3]")):
        (tmp_path / name).write_text(text, "utf-8")
        code = main([*common, "--positive", str(tmp_path / name), "--negative", str(negative)])
        assert code == (0 if name == "x.txt" else 2), name
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    assert main([*common, "--positive", str(tmp_path / "x.txt"), "--negative", str(negative)]) == 2
    assert "is not UTF-8" in capsys.readouterr().err
    assert main([*common, "--positive", str(tmp_path / "none"), "--negative", str(negative)]) == 2


def test_the_command_takes_samples(running: RunningServer, tmp_path: Path) -> None:
    with Client(address(running)) as client:
        for name, prompts in (("p", [[1, 2]]), ("n", [[60]])):
            client.generate("toy", prompts, n=2, max_tokens=3).save(tmp_path / name)
    files = ["--positive", str(tmp_path / "p"), "--negative", str(tmp_path / "n")]
    arguments = ["neurons", "toy", "--server", address(running), "--quiet", *files, "--tokens", "generated"]
    assert main(arguments) == 0
