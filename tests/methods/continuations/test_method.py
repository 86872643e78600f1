"""Scores of continuations with a made-up engine: their order, parts, kills, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.method_run import MethodRun
from numpy.typing import NDArray

from pahq_server.core import activations
from pahq_server.core.activations import NeuronSteering, ScoreContinuations, Steering
from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.engine import Objective, ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.graph import Graph
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import NodeLayout
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.methods.continuations.method import Continuations, ContinuationsParameters

METHOD = Continuations()
TASK = TokenTask(tuple(tuple(range(number, number + 4 + number % 5)) for number in range(40)))
RESOLVED = ResolvedObjective(
    Objective("m", PromptTask(()), "l2", "zero", "group", "fp32"),
    TASK,
    Graph(3, 2, 2),
    "c0ffee",
    nodes=NodeLayout(3, 2, 4, 8, 20),
)
ASKED = ContinuationsParameters(tuple(1 + number % 3 for number in range(40)))


def steering(revision: str = "", raised: Sequence[int] = (3,)) -> NeuronSteering:
    numbers = np.array(raised, np.int64)
    return NeuronSteering(3, 20, revision, Steering(numbers, np.ones(len(raised)), np.array([7])))


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "MOST_PART", 50)
    monkeypatch.setattr(activations, "LEAST_PART", 50)


def run(
    parameters: ContinuationsParameters, journal: Sequence[bytes] = (), operations: int | None = None
) -> tuple[Artifact | None, list[bytes], list[Any]]:
    """Runs the method, until its end or for some operations; scores are those of the texts' numbers."""

    def answer(operation: Operation) -> NDArray[np.float64]:
        assert isinstance(operation, ScoreContinuations)
        found = np.array([-span.text / 7 - span.first for span in operation.spans])
        operation.check(found)
        return found

    found = MethodRun(METHOD, RESOLVED, parameters, answer, journal, operations)
    return found.artifact, found.journal, found.asked


def test_scores_are_in_the_order_of_the_texts() -> None:
    artifact, _, asked = run(ASKED)
    assert artifact is not None
    header, arrays = unpack(artifact.data)
    assert header == {"kind": "continuation_scores", "version": 1}
    assert arrays["logprobs"].tolist() == [-number / 7 - ASKED.starts[number] for number in range(40)]
    assert len(asked) > 3
    assert sum(operation.weight for operation in asked) == pytest.approx(1)
    assert all(operation.steering is None for operation in asked)


def test_whenever_it_is_killed_the_result_is_the_same() -> None:
    whole, _, asked = run(ASKED)
    assert whole is not None
    for operations in range(1, len(asked) + 1):
        _, journal, _ = run(ASKED, operations=operations)
        ended, _, again = run(ASKED, journal)
        assert ended is not None
        assert ended.data == whole.data
        assert len(again) == len(asked) - operations + 1
    with pytest.raises(ValueError, match="journal"):
        run(ASKED, [bytes(8)])


def test_steering_goes_along() -> None:
    _, _, asked = run(replace(ASKED, steering=steering("c0ffee")))
    assert {tuple(operation.steering.raised) for operation in asked} == {(3,)}
    with pytest.raises(OtherModelError):
        METHOD.check(replace(ASKED, steering=steering("badd")), RESOLVED)
    with pytest.raises(InvalidRequestError, match="steering"):
        METHOD.check(replace(ASKED, steering=steering(raised=(99,))), RESOLVED)


def test_parameters_survive_being_stored() -> None:
    for asked in (ASKED, replace(ASKED, steering=steering())):
        again = METHOD.read_stored(METHOD.stored(asked))
        assert METHOD.stored(again) == METHOD.stored(asked)
        assert METHOD.described(again) == METHOD.described(asked)
    assert METHOD.described(ASKED) != METHOD.described(replace(ASKED, steering=steering()))


@pytest.mark.parametrize(
    ("starts", "words"),
    [
        ((1,), "for each of 40 texts, got 1"),
        ((0,) * 40, r"starts\[0\]: must be from 1 to 3"),
        ((4,) * 40, r"starts\[0\]: must be from 1 to 3, .* got 4"),
        ((-1,) * 40, "got -1"),
    ],
)
def test_continuations_that_are_not_in_the_texts(starts: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        METHOD.check(ContinuationsParameters(starts), RESOLVED)


def test_bad_parameters() -> None:
    with pytest.raises(InvalidRequestError, match=r"starts\[0\]: must be a whole number"):
        METHOD.read({"starts": (True,)})
    with pytest.raises(InvalidRequestError, match="must be an edit of neurons"):
        METHOD.read({"starts": (1,), "steering": 3})
    rounded = replace(RESOLVED, objective=replace(RESOLVED.objective, precision="int8"))
    with pytest.raises(InvalidRequestError, match="rounds activations"):
        METHOD.check(ASKED, rounded)
