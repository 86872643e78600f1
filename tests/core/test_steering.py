"""Edits of neurons: which are equal, how they are kept, and which a model refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.steering import sized_steering

from pahq_server.core.activations import MOST_STEERED, NeuronSteering, Steering
from pahq_server.core.errors import InvalidRequestError, OtherModelError


def edit(raised: Any = (1, 4), amounts: Any = (0.5, -2.0), lowered: Any = (0, 5)) -> Steering:
    return Steering(np.array(raised, np.int64), np.array(amounts, np.float64), np.array(lowered, np.int64))


def given(**changes: Any) -> NeuronSteering:
    return NeuronSteering(2, 3, "c0ffee", edit(**changes))


def test_equal_edits_are_equal() -> None:
    assert edit() == edit()
    assert len({edit(), edit(), edit(lowered=[0])}) == 2
    # The same numbers otherwise divided, and the last bit of an amount.
    others = [
        edit((1,), (0.5,), (4, 5)),
        edit((1, 4), (0.5, -2.0), (5,)),
        edit(amounts=(0.5, np.nextafter(-2.0, 0))),
        edit((), (), ()),
    ]
    assert len({edit(), *others}) == 5
    assert edit() != "edit"


@pytest.mark.parametrize("seed", range(4))
def test_what_is_stored_is_read(seed: int) -> None:
    known = NeuronSteering(3, 50, "abc", sized_steering(seed, 150))
    assert NeuronSteering.of_stored(json.loads(json.dumps(known.stored()))) == known
    assert known.steering("s", 3, 50, "abc") == known.edit
    assert replace(known, revision="").steering("s", 3, 50, "abc") is not None
    counts = {"raised": 45, "lowered": 45}
    assert known.described() == {**counts, "sha256": known.edit.digest.hex()}


@pytest.mark.parametrize("damage", [{}, {"raised": "!"}, {"raised": "AAAA"}, {"amounts": 3}])
def test_what_was_not_stored_so_is_refused(damage: dict[str, Any]) -> None:
    fields = {**given().stored(), **damage} if damage else {}
    with pytest.raises((ValueError, TypeError, LookupError)):
        NeuronSteering.of_stored(fields)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"amounts": (1.0,)}, "steering.amounts", "one for each of 2 raised neurons, got 1"),
        ({"raised": (1, 6)}, "steering.raised[1]", "must be from 0 to 5, got 6"),
        ({"raised": (-1, 1)}, "steering.raised[0]", "must be from 0 to 5, got -1"),
        ({"raised": (4, 1)}, "steering.raised[1]", "larger than the number before it, got 1"),
        ({"raised": (4, 4)}, "steering.raised[1]", "larger than the number before it, got 4"),
        ({"lowered": (5, 0)}, "steering.lowered[1]", "larger than the number before it, got 0"),
        ({"lowered": (2, 99)}, "steering.lowered[1]", "must be from 0 to 5, got 99"),
        ({"lowered": (3, 4)}, "steering.lowered", "neuron 4 is raised as well"),
        ({"amounts": (1.0, np.nan)}, "steering.amounts[1]", "finite number in float32, got nan"),
        ({"amounts": (np.inf, 1.0)}, "steering.amounts[0]", "finite number in float32, got inf"),
        ({"amounts": (1.0, 1e39)}, "steering.amounts[1]", "finite number in float32, got 1e+39"),
        ({"raised": (), "amounts": (), "lowered": ()}, "steering", "names no neurons"),
    ],
)
def test_edits_that_no_model_takes(changes: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        given(**changes).steering("steering", 2, 3, "c0ffee")
    assert caught.value.field == field
    assert words in caught.value.detail


@pytest.mark.parametrize("sizes", [(2, 3, "bad"), (3, 3, "c0ffee"), (2, 4, "c0ffee")])
def test_neurons_of_another_model(sizes: tuple[int, int, str]) -> None:
    with pytest.raises(OtherModelError) as caught:
        given().steering("parameters.steering", *sizes)
    assert caught.value.field == "parameters.steering"
    assert "Give neurons that were found in this model" in caught.value.detail
    assert "allow_other_model" not in caught.value.detail
    assert caught.value.circuit == "2 layers, 3 neurons in each, revision c0ffee"


def test_a_model_without_mlps_has_no_neurons() -> None:
    with pytest.raises(InvalidRequestError, match="has no MLPs"):
        given().steering("steering", 2, 0, "c0ffee")


def test_neurons_are_bounded() -> None:
    numbers = np.arange(MOST_STEERED + 1)
    most = NeuronSteering(1, len(numbers), "", edit((), (), numbers[1:]))
    assert most.steering("steering", 1, len(numbers), "x") == most.edit
    with pytest.raises(InvalidRequestError, match="at most 65536 neurons, got 65537"):
        replace(most, edit=edit((), (), numbers)).steering("steering", 1, len(numbers), "x")
