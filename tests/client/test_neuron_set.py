"""Neuron sets: as the server writes them, as files, damaged, compared, swapped, as edits and as controls."""

from __future__ import annotations

import hashlib
import json
import math
import random
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from pahq_client import (
    InvalidNeuronSetFile,
    InvalidRequest,
    Neuron,
    NeuronSet,
    OtherModel,
    ServerFault,
    TokenPlace,
)
from pahq_client.artifacts import decode
from pahq_client.cli import main
from pahq_client.display.neurons import words
from pahq_server.core.activations import TopTokensOfNeurons
from pahq_server.core.artifact import pack, unpack
from pahq_server.core.pruning import NodeLayout
from pahq_server.methods.neurons.artifact import neuron_set_bytes
from pahq_server.methods.neurons.choice import ChosenNeurons, Described
from pahq_server.methods.neurons.parameters import NeuronsParameters

LAYOUT = NodeLayout(layers=3, heads=2, d_head=4, d_model=8, d_mlp=10)
TEXTS, TOKENS = (4, 3), (40, 25)
PROMPTS = [*("a brave knight", "b <b>bold</b>", "c", "d"), [1, 2, 3], "f", "g"]
PROVENANCE: dict[str, Any] = {
    "request": {"model_revision": "c0ffee", "parameters": {"positive": 4}},
    "run": {"model": "toy", "prompts": {"clean": PROMPTS}, "warnings": ["Beware of <this>."]},
}


def described(draw: np.random.Generator, count: int, free: list[int], sign: int, first: int) -> Described:
    numbers = np.array([free.pop() for _ in range(count)], np.int64)
    delta = sign * np.sort(draw.uniform(0.2, 1, count))[::-1]
    low = draw.uniform(0, 1 - abs(delta))
    positive, negative = (low + delta, low) if sign > 0 else (low, low - delta)
    values = np.sort(draw.uniform(0, 3, (count, 5)))[:, ::-1].copy()
    texts = draw.integers(first, first + 3, (count, 5))
    positions = draw.integers(0, 8, (count, 5))
    values[:, 4], texts[:, 4], positions[:, 4] = -np.inf, -1, -1
    chosen = ChosenNeurons(
        numbers, positive - negative, positive, negative, draw.normal(0, 1, count), np.ones(count, np.int64)
    )
    order = np.argsort(-sign * chosen.delta, kind="stable")
    chosen = replace(
        chosen, **{name: getattr(chosen, name)[order] for name in ("delta", "positive", "negative")}
    )
    return Described(chosen, draw.uniform(0, 3, count), TopTokensOfNeurons(values, texts, positions))


def artifact(seed: int = 0, raised: int = 7, lowered: int = 4) -> bytes:
    draw = np.random.default_rng(seed)
    free = draw.permutation(30).tolist()
    sides = described(draw, raised, free, 1, 0), described(draw, lowered, free, -1, 4)
    return neuron_set_bytes(sides, NeuronsParameters(positive=4), LAYOUT, TEXTS, TOKENS)


def read(data: bytes) -> NeuronSet:
    found = decode("neuron_set", 1, data, PROVENANCE)
    assert isinstance(found, NeuronSet)
    return found


def set_of(seed: int = 0, raised: int = 7, lowered: int = 4) -> NeuronSet:
    return read(artifact(seed, raised, lowered))


def test_it_is_read_as_the_server_writes_it() -> None:
    found = set_of()
    _, arrays = unpack(artifact())
    assert (found.layers, found.d_mlp, found.texts, found.tokens) == (3, 10, TEXTS, TOKENS)
    assert (found.counted, found.top_k, found.min_delta, found.control) == ("all", 2000, 0.1, None)
    assert len(found) == 11
    assert (found.numbers(list(found)) == arrays["number"]).all()
    for row, neuron in enumerate(found):
        assert neuron.name == f"m{arrays['number'][row] // 10}.u{arrays['number'][row] % 10}"
        for name in ("delta", "positive_share", "negative_share", "mean", "q95"):
            assert getattr(neuron, name) == arrays[name][row]
        assert len(neuron.places) == 4
        assert neuron.places[0].value == arrays["context_value"][5 * row]
        assert neuron.places[0].text == arrays["context_text"][5 * row] < 3
    assert found.prompts == (tuple(PROMPTS[:4]), ((1, 2, 3), "f", "g"))
    assert (found.model, found.warnings) == ("toy", ("Beware of <this>.",))
    assert "7 neurons raised and 4 lowered of 30" in repr(found)


def test_what_is_in_it() -> None:
    found = set_of()
    counts = [
        (sum(n.layer == layer for n in found.raised), sum(n.layer == layer for n in found.lowered))
        for layer in range(3)
    ]
    assert found.per_layer == tuple(counts)
    assert found.top(3).raised == found.raised[:3]
    assert found.top(100) == found
    with pytest.raises(InvalidRequest, match="from 1 on, got 0"):
        found.top(0)
    context = found.contexts(found.lowered[0])[0]
    place = found.lowered[0].places[0]
    assert (context.text, context.position, context.value) == (place.text, place.position, place.value)
    assert found.prompts is not None
    assert context.prompt == found.prompts[1][place.text]
    assert (context.before, context.token) == ((), "")
    for wrong in (replace(found.raised[0], unit=99), "m0.u1"):
        with pytest.raises(InvalidRequest, match=r"none of the 11|must be a Neuron"):
            found.contexts(wrong)  # type: ignore[arg-type]
    assert read(artifact(0, 0, 0)).per_layer == ((0, 0),) * 3
    assert found != 3


# Edits


@pytest.mark.parametrize("seed", range(5))
def test_an_edit_is_what_the_formula_says(seed: int) -> None:
    found = set_of(seed)
    edit = found.edit(2.0)
    amounts = dict(zip(edit.raised.tolist(), edit.amounts.tolist(), strict=True))
    for neuron in found.raised:
        expected = neuron.q95 * 2 / (1 + math.exp(-10 * (neuron.delta - 0.15)))
        assert amounts.pop(neuron.layer * 10 + neuron.unit) == pytest.approx(expected, rel=1e-12)
    assert not amounts
    assert edit.lowered.tolist() == sorted(n.layer * 10 + n.unit for n in found.lowered)
    assert edit.raised.tolist() == sorted(edit.raised.tolist())
    back, swapped = found.edit(-0.5), found.swapped().edit(0.5)
    for name in ("raised", "amounts", "lowered"):
        assert (getattr(back, name) == getattr(swapped, name)).all()
    assert back.raised.tolist() == edit.lowered.tolist()
    assert not len(found.edit(0).raised) + len(found.edit(0).lowered)
    assert (edit.raised.dtype, edit.amounts.dtype, edit.lowered.dtype) == (np.int64, np.float64, np.int64)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "much", True])
def test_strengths_that_are_none(strength: Any) -> None:
    with pytest.raises(InvalidRequest, match="strength"):
        set_of().edit(strength)


def test_swapped_twice_it_is_the_same(tmp_path: Path) -> None:
    found = set_of()
    other = found.swapped()
    assert (other.texts, other.tokens) == ((3, 4), (25, 40))
    assert other.raised[0].delta == -found.lowered[0].delta > 0
    assert other.prompts == (found.prompts[1], found.prompts[0])  # type: ignore[index]
    assert other.contexts(other.raised[0]) == found.contexts(found.lowered[0])
    assert other.swapped() == found
    other.save(tmp_path / "other")
    assert NeuronSet.load(tmp_path / "other") == other
    assert NeuronSet.load(tmp_path / "other").prompts == other.prompts


@pytest.mark.parametrize("seed", range(10))
def test_a_control_has_as_many_others_of_each_layer_and_the_same_edit(seed: int, tmp_path: Path) -> None:
    found = set_of(seed, 4, 2)
    control = found.matched_control(seed)
    assert control.per_layer == found.per_layer
    assert not {n.name for n in control} & {n.name for n in found}
    assert len({n.name for n in control}) == len(found)
    assert sorted(control.edit(1.5).amounts) == sorted(found.edit(1.5).amounts)
    assert control == found.matched_control(seed)
    assert control != found.matched_control(seed + 1)
    assert control != found
    assert f"random control {seed}" in repr(control)
    control.save(tmp_path / "control")
    assert NeuronSet.load(tmp_path / "control") == control
    assert control.contexts(control.raised[0]) == ()


def test_controls_that_cannot_be(tmp_path: Path) -> None:
    found = set_of(0, 20, 6)
    with pytest.raises(InvalidRequest, match=r"no control can be drawn: layer \d has .* top\(\)"):
        found.matched_control(0)
    with pytest.raises(InvalidRequest, match="from 0 on"):
        set_of().matched_control(-1)


def test_comparing() -> None:
    a, b = set_of(1), set_of(2)
    found = a.compare(b)
    names = [{n.name for n in each.raised} for each in (a, b)]
    assert found["raised"].both == len(names[0] & names[1])
    assert found["raised"].only_a == len(names[0] - names[1])
    assert a.compare(a)["lowered"].jaccard == 1
    other = replace(a, provenance={"request": {"model_revision": "badd"}})
    with pytest.raises(OtherModel, match="different models"):
        a.compare(other)
    assert a.compare(other, allow_other_model=True)["raised"].jaccard == 1
    with pytest.raises(OtherModel, match="of other sizes"):
        a.compare(replace(a, layers=5))
    with pytest.raises(InvalidRequest, match=r"NeuronSet\.load"):
        a.compare("file")  # type: ignore[arg-type]


# Files


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, path = set_of(), tmp_path / "value.neurons"
    found = replace(found, token_texts=({0: ("Ġa", "Ġbrave", "Ġknight")}, {}))
    found.save(path)
    again = NeuronSet.load(path)
    assert again == found
    assert hash(again) == hash(found)
    assert (again.raised, again.lowered, again.prompts) == (found.raised, found.lowered, found.prompts)
    assert again.token_texts == found.token_texts
    assert again.provenance == found.provenance
    again.save(tmp_path / "again.neurons")
    assert (tmp_path / "again.neurons").read_bytes() == path.read_bytes()
    assert main(["show", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"raised\t{found.raised[0].name}\t" in out
    assert main(["show", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["raised"][0]["name"] == found.raised[0].name
    assert main(["view", "--no-open", str(path), "--output", str(tmp_path / "page.html")]) == 0
    assert main(["compare", str(path), str(path)]) == 0
    assert "raised" in capsys.readouterr().out
    assert main(["compare", "--json", str(path), str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["lowered"]["jaccard"] == 1
    for arguments in (["curve", str(path), "--model", "m", "--task", "ioi"], ["view", str(path), str(path)]):
        assert main(arguments) == 2
    assert main(["show", str(tmp_path / "nothing.neurons")]) == 2


def test_an_empty_set_is_a_file_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.neurons"
    set_of(0, 0, 0).save(path)
    assert NeuronSet.load(path) == set_of(0, 0, 0)
    for command in (
        ["show"],
        ["view", "--no-open", "--output", str(tmp_path / "p.html")],
        ["compare", str(path)],
    ):
        assert main([*command, str(path)]) == 0
    assert "0 neurons raised" in capsys.readouterr().out


def test_partial_files_are_asked_for(tmp_path: Path) -> None:
    replace(set_of(), partial=True).save(tmp_path / "part")
    with pytest.raises(InvalidNeuronSetFile, match="allow_partial=True"):
        NeuronSet.load(tmp_path / "part")
    assert NeuronSet.load(tmp_path / "part", allow_partial=True).partial


def test_what_json_cannot_express(tmp_path: Path) -> None:
    with pytest.raises(InvalidNeuronSetFile, match="cannot be written"):
        replace(set_of(), provenance={"request": {"x": object()}}).save(tmp_path / "x")
    with pytest.raises(InvalidNeuronSetFile, match="cannot be written"):
        replace(set_of(), provenance={"request": {"x": math.nan}}).canonical_bytes()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": 0}, "layers is 0"),
        ({"layers": True}, "must not be bool"),
        ({"layers": 1 << 40, "d_mlp": 1 << 40}, "not those of a model"),
        ({"d_mlp": 2}, "not some of the model's 6"),
        ({"raised": 12}, "raised is 12, not from 0 to 11"),
        ({"raised": 5}, "other neurons than were asked for"),
        ({"raised": -1}, "raised is -1"),
        ({"texts": [4]}, "texts are not two numbers"),
        ({"texts": [1, 1]}, "a text that there is not"),
        ({"tokens": [0, 3]}, "tokens are not two numbers"),
        ({"tokens": [1.5, 3]}, "tokens are not"),
        ({"top_k": 3}, "other neurons than were asked for"),
        ({"min_delta": 0.9}, "other neurons than were asked for"),
        ({"min_delta": 0}, "min_delta is 0"),
        ({"contexts": 4}, "expected int64|expected float64"),
        ({"contexts": -1}, "contexts is -1"),
        ({"contexts": 10**6}, "contexts is"),
        ({"control": -5}, "control is -5"),
        ({"control": "x"}, "control"),
        ({"prompts": [["a"], []]}, "prompts are not as many"),
        ({"prompts": [[1.5] * 4, ["a"] * 3]}, "neither text nor token ids"),
        ({"token_texts": [{}]}, "two sides"),
        ({"token_texts": [{"9": []}, {}]}, "of a text '9'"),
        ({"token_texts": [{"0": [1]}, {}]}, "no texts"),
        ({"version": 2}, "something else"),
        ({"counted": 3}, "counted"),
    ],
)
def test_layouts_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    header, arrays = unpack(artifact())
    with pytest.raises(ServerFault, match=words):
        read(pack({**header, **changes}, arrays))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("number", -1, "each once"),
        ("number", 30, "each once"),
        ("number", "twice", "each once"),
        ("delta", math.nan, "not finite"),
        ("delta", 0.99, "not the difference"),
        ("positive_share", 1.5, "not from 0 to 1"),
        ("negative_share", -0.5, "not from 0 to 1"),
        ("mean", math.inf, "not finite"),
        ("q95", 3.5, "q95 that is not"),
        ("q95", -1.0, "q95 that is not"),
        ("context_text", 99, "a text that there is not"),
        ("context_text", -1, "a text that there is not"),
        ("context_position", -2, "a text that there is not"),
        ("context_value", math.nan, "not finite"),
        ("context_value", -math.inf, "not finite"),
        ("context_value", -5.0, "not in the order of their activations"),
        ("mean", None, "no array 'mean'"),
        ("context_text", None, "no array 'context_text'"),
    ],
)
def test_arrays_that_cannot_be(name: str, value: Any, words: str) -> None:
    header, arrays = unpack(artifact())
    if value is None:
        del arrays[name]
    else:
        arrays[name] = arrays[name].copy()
        arrays[name][0] = arrays[name][1] if value == "twice" else value
    with pytest.raises(ServerFault, match=words):
        read(pack(header, arrays))


def test_neurons_out_of_order() -> None:
    header, arrays = unpack(artifact())
    for name in ("delta", "positive_share", "negative_share"):
        arrays[name] = arrays[name].copy()
        arrays[name][:2] = arrays[name][1::-1]
    with pytest.raises(ServerFault, match="raised neurons are not in the order"):
        read(pack(header, arrays))


@pytest.mark.parametrize("name", ["number", "delta", "context_text"])
def test_arrays_of_other_types(name: str) -> None:
    header, arrays = unpack(artifact())
    for wrong in (arrays[name].astype(np.float32), arrays[name][:-1], arrays[name][None]):
        with pytest.raises(ServerFault, match=r"expected (int|float)64"):
            read(pack(header, {**arrays, name: wrong}))


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    """Whatever bytes change: a set, or an error of this package."""
    draw, path = random.Random(5), tmp_path / "damaged"
    set_of().save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            found = NeuronSet.load(path)
        except InvalidNeuronSetFile:
            refused += 1
        else:
            repr(found), found._repr_html_(), found.edit(1.0), found.swapped()
    assert 200 < refused < 400


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data in (
        b"",
        b"{}",
        save({"a": np.zeros(1)}),
        save({"a": np.zeros(1)}, {"artifact": '{"kind": "x"}'}),
    ):
        path.write_bytes(data)
        with pytest.raises(InvalidNeuronSetFile):
            NeuronSet.load(path)
    assert set(load(artifact())) >= {"number", "delta"}


# Pages


def test_the_page(tmp_path: Path) -> None:
    found = replace(set_of(), token_texts=({0: ("Ġa", "Ġ<brave>", *("Ġx",) * 12)}, {}))
    neuron = replace(found.raised[0], places=(TokenPlace(0, 1, 2.5), TokenPlace(1, 0, 2.0)))
    found = replace(found, raised=(neuron, *found.raised[1:]))
    found.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert f"style-src 'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in text
    assert " a<mark> &lt;brave&gt;</mark> x x x x x…" in text
    assert "b &lt;b&gt;bold&lt;/b&gt;" in text
    assert "Beware of &lt;this&gt;." in text
    for part in ("<script", "http://", "<brave", "<b>bold"):
        assert part not in text
    for each in found:
        assert f"<td>{each.name}</td>" in text
    assert found.raised[0].name in found._repr_html_()
    with pytest.raises(InvalidRequest):
        found.to_html(tmp_path)


def test_words_of_tokens() -> None:
    assert words(["Ġa", "▁b", "c\x1b", "Ċ"]) == " a bc\\x1b "


def test_a_neuron_is_named_as_a_hidden_unit() -> None:
    assert str(Neuron(3, 17, 0.5, 0.75, 0.25, 0.1, 1.0)) == "m3.u17"
