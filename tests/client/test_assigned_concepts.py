"""Concepts of texts and ablations as a server may send them, and which texts are sent: whole or in parts."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pahq_client import AssignedConcepts, ConceptAblation, InvalidRequest, OtherModel, ServerFault, artifacts
from pahq_client.assigned_concepts import of_texts
from pahq_client.assigning import (
    MOST_CODEBOOK_BYTES,
    AblateRequest,
    AssignRequest,
    around,
    codebook_message,
    renamed,
)
from pahq_client.locating import LocatedText, split

from .test_codebook import book

Change = Callable[[dict[str, Any], dict[str, Any]], None]

CODES = {"kind": "concept_codes", "version": 1, "low": 1, "codes": 4, "skip": 1, "names": ["a", "b", "c"]}
CODE_ARRAYS = {
    "lengths": np.array([3, 1, 2], np.int64),
    "ids": np.array([5, 6, 7, 5, 6, 6], np.int32),
    "named": np.array([5, 6, 7], np.int32),
    "codes": np.array([3, 0, 3], np.int32),
    "distances": np.array([0.5, 0, 2], np.float32),
}
ABLATION = {
    "kind": "concept_ablation",
    "version": 1,
    "low": 0,
    "layer": 2,
    "codes": 3,
    "folds": 5,
    "removed": ["nothing", "code", "random", "other_code", "component"],
    "next_tokens": True,
    "names": ["x", ""],
}
ABLATION_ARRAYS = {
    "texts": np.array([0, 0, 2, 5], np.int64),
    "positions": np.array([1, 3, 1, 0], np.int64),
    "labels": np.array([0, 1, 1, 1], np.int32),
    "classes": np.array([8, 9], np.int64),
    "own": np.array([2, 0, 2, 2], np.int32),
    "predicted": np.array([[0, 1, 1, 0], [1] * 4, [0, 1, 1, 1], [0] * 4, [1, 0, 0, 0]], np.int32).ravel(),
}


def decoded(layout: dict[str, Any], arrays: dict[str, Any], change: Change = lambda a, b: None) -> Any:
    layout, arrays = dict(layout), {name: array.copy() for name, array in arrays.items()}
    change(layout, arrays)
    data = save(arrays, {"artifact": json.dumps(layout)})
    return artifacts.decode(layout["kind"], 1, data, {"request": {}, "run": {}})


def test_codes_of_texts() -> None:
    found = decoded(CODES, CODE_ARRAYS)
    assert isinstance(found, AssignedConcepts)
    assert [text.codes.tolist() for text in found] == [[-1, 3, 0], [-1], [-1, 3]]
    assert [text.tokens for text in found] == [("a", "b", "c"), ("a",), ("b", "b")]
    assert found[2].distances[1] == 2
    assert np.isnan(found[1].distances).all()
    assert found.sizes.tolist() == [1, 0, 0, 2]
    assert found.perplexity == pytest.approx(np.exp(-(np.log(1 / 3) / 3 + 2 * np.log(2 / 3) / 3)))
    assert found.summary().startswith("3 tokens of 3 texts, 2 of 4 concepts, layer 1")


def test_figures_of_an_ablation() -> None:
    found = decoded(ABLATION, ABLATION_ARRAYS)
    assert isinstance(found, ConceptAblation)
    expected = {"nothing": 0.75, "code": 0.75, "random": 1.0, "other_code": 0.25, "component": 0.0}
    assert found.accuracies == expected
    assert (found.chance, found.drop, found.layer) == (0.75, 0.0, 2)
    assert found.from_chance == {name: abs(value - 0.75) for name, value in expected.items()}
    assert found.control_drops == {"random": -0.25, "other_code": 0.5, "component": 0.75}
    assert found.classes == ("x", 9)
    most, least = found.by_concept
    assert (most.number, most.states, most.accuracy, most.ablated) == (0, 1, 1.0, 1.0)
    assert (least.number, least.states) == (2, 3)
    assert least.lost == pytest.approx(3 * (2 / 3 - 2 / 3))


def put(name: str, value: Any) -> Change:
    return lambda layout, arrays: (layout if name in layout else arrays).update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        put("codes", 0),
        put("codes", 3),
        put("codes", 1 << 40),
        put("low", -1),
        put("skip", -1),
        put("skip", 2),
        put("skip", 9),
        put("names", ["a", "b"]),
        put("names", ["a", "b", 3]),
        put("lengths", np.array([3, 2, 2])),
        put("lengths", np.array([7, -3, 2])),
        put("lengths", np.array([], np.int64)),
        put("lengths", np.array([1 << 62, 1 << 62, 1 << 62, (1 << 62) + 6])),
        put("ids", np.array([5, 6, 7, 5, 6, 8], np.int32)),
        put("ids", np.array([5, 6, 7, 5, 6, 6])),
        put("distances", np.array([0, -1, 0], np.float32)),
        put("distances", np.array([0, np.nan, 0], np.float32)),
    ],
)
def test_codes_that_cannot_be(change: Change) -> None:
    with pytest.raises(ServerFault, match="cannot be right"):
        decoded(CODES, CODE_ARRAYS, change)


def test_codes_out_of_range() -> None:
    for wrong in (-1, 4):
        with pytest.raises(ServerFault, match="from 0 to 3"):
            decoded(CODES, {**CODE_ARRAYS, "codes": np.array([0, wrong, 0], np.int32)})


@pytest.mark.parametrize(
    "change",
    [
        put("codes", 2),
        put("layer", -1),
        put("removed", ["nothing"]),
        put("next_tokens", 1),
        put("names", ["x"]),
        put("texts", np.array([0, 0, -2, 5])),
        put("texts", np.array([0, 0, 2])),
        put("positions", np.array([0, 0, -2, 5])),
        put("labels", np.array([0, 1, 2, 0], np.int32)),
        put("labels", np.array([], np.int32)),
        put("classes", np.array([8, 8])),
        put("own", np.array([3, 0, 0, 0], np.int32)),
        put("predicted", np.full(20, 2, np.int32)),
        put("predicted", np.zeros(19, np.int32)),
        put("predicted", np.zeros(20)),
    ],
)
def test_ablations_that_cannot_be(change: Change) -> None:
    with pytest.raises(ServerFault, match="cannot be right"):
        decoded(ABLATION, ABLATION_ARRAYS, change)


@pytest.mark.parametrize("seed", range(5))
def test_texts_in_parts_get_each_code_once(seed: int) -> None:
    draw = np.random.default_rng(seed)
    context, skip = int(draw.integers(4, 9)), int(draw.integers(0, 4))
    whole = [draw.integers(0, 50, draw.integers(1, 40)) for _ in range(6)]
    parts = [
        part
        for number, ids in enumerate(whole)
        for part in split(LocatedText(tuple(ids.tolist()), 0, number), ids.tolist(), context, skip)
    ]
    # The code of a token is its own id and the distance its position.
    lengths = [len(part.prompt) for part in parts]
    codes = [np.asarray(part.prompt, np.int32)[skip:] for part in parts]
    places = [part.offset + np.arange(len(part.prompt), dtype=np.float32)[skip:] for part in parts]
    ids = np.concatenate([np.asarray(part.prompt, np.int32) for part in parts])
    if not sum(map(len, codes)):
        return
    arrays = {
        "lengths": np.array(lengths),
        "ids": ids,
        "named": np.unique(ids),
        "codes": np.concatenate(codes),
        "distances": np.concatenate(places),
    }
    names = [f"t{token}" for token in np.unique(ids)]
    found = decoded({**CODES, "codes": 50, "skip": skip, "names": names}, arrays)
    for text, given in zip(of_texts(found, parts), whole, strict=True):
        assert text.ids.tolist() == given.tolist()
        assert text.tokens == tuple(f"t{token}" for token in given)
        assert text.codes.tolist() == [-1] * min(skip, len(given)) + given[skip:].tolist()
        assert text.distances[skip:].tolist() == list(range(len(given)))[skip:]


def test_the_part_around_a_token_ends_with_it() -> None:
    text = LocatedText("said", 0, 3)
    assert around(text, range(5), -1, 5) == (text, 4)
    assert around(text, range(9), -1, 5) == (LocatedText((4, 5, 6, 7, 8), 0, 3, offset=4), 4)
    assert around(text, range(9), 6, 5) == (LocatedText((2, 3, 4, 5, 6), 0, 3, offset=2), 4)
    assert around(text, range(9), 1, 5) == (LocatedText((0, 1, 2, 3, 4), 0, 3), 1)
    for wrong in (9, -10):
        with pytest.raises(InvalidRequest, match="from -9 to 8") as caught:
            around(text, range(9), wrong, 5)
        assert caught.value.field == "positions[3]"


def test_a_codebook_is_sent_as_numbers_and_not_if_it_is_too_large() -> None:
    message = codebook_message(book())
    assert (message.layers, message.width, message.low, message.model_revision) == (2, 4, 1, "r")
    assert np.frombuffer(message.codes, "<f4").tolist() == book().codes.ravel().tolist()
    assert np.frombuffer(message.encoder, "<f4").tolist() == book().encoder.tolist()
    large = dataclasses.replace(book(), codes=np.zeros((MOST_CODEBOOK_BYTES // 16 + 1, 4), np.float32))
    with pytest.raises(InvalidRequest, match=r"takes 12\.0 MiB, more than the 12 MiB") as caught:
        codebook_message(large)
    assert caught.value.field == "codebook"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"skip": -1}, "skip"),
        ({"skip": 1.5}, "skip"),
        ({"long_texts": "cut"}, "long_texts"),
        ({"layer": -1}, "layer"),
        ({"seed": -1}, "seed"),
        ({"labels": []}, "labels"),
        ({"labels": [[1], [2]]}, "labels[0]"),
        ({"labels": "ab"}, "labels"),
        ({"positions": [0]}, "positions"),
        ({"labels": ["a"], "positions": ["0"]}, "positions[0]"),
    ],
)
def test_arguments_that_are_never_right(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        AblateRequest("m", book(), ["a"], **options).checked()
    assert caught.value.field == field
    if options.keys() <= {"skip", "long_texts"}:
        with pytest.raises(InvalidRequest):
            AssignRequest("m", book(), ["a"], **options).checked()


def test_what_is_left_open_is_that_of_the_codebook() -> None:
    request = AblateRequest("m", book(), ["a", "b", "c"], iter(["no", 3, "no"])).checked()
    assert (request.layer, request.skip, request.classes) == (2, 1, ("no", 3))
    message = request.parameters(())
    assert list(message.labels) == [0, 1, 0]
    assert (message.layer, message.skip) == (2, 1)
    with pytest.raises(InvalidRequest, match="one for each of 2 texts, got 3"):
        request.places(2)
    assert AssignRequest("m", book(), ["a"], skip=0).checked().parameters().skip == 0


def test_errors_have_the_names_of_arguments() -> None:
    parts = [LocatedText("a", 0, 0), LocatedText("b", 0, 4)]
    error = renamed(InvalidRequest("task.clean[1]", "is wrong, task.clean is"), "assign_concepts", parts)
    assert (error.field, error.detail) == ("texts[4]", "is wrong, texts is")
    error = renamed(InvalidRequest("ablate_concepts.codebook.codes", "x"), "ablate_concepts", parts)
    assert error.field == "codebook.codes"
    other = renamed(OtherModel("this", "that"), "ablate_concepts", parts)
    assert isinstance(other, OtherModel)
    assert (other.field, other.circuit, other.model) == ("codebook", "this", "that")
