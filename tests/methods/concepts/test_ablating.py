"""Ablation of concepts with a made-up model: planted labels, who is held out when, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.method_run import MethodRun

from pahq_server.core.activations import CaptureStates
from pahq_server.core.artifact import Artifact, unpack
from pahq_server.core.codebooks import REMOVED, GivenCodebook, ProbeStates
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.operations import Operation
from pahq_server.core.task import TokenTask
from pahq_server.engine.concepts.probe import probe
from pahq_server.methods.concepts.ablating import AblateConcepts, AblateParameters
from pahq_server.methods.concepts.examples import (
    FOLDS,
    MOST_EXAMPLES,
    NEXT_TOKENS,
    Examples,
    labelled,
    next_tokens,
)

from .test_assigning import codebook
from .toy import LAYOUT, ToyStates, resolved, texts

METHOD = AblateConcepts()
WIDTH = LAYOUT.d_model


class Planted(ToyStates):
    """States of which one direction alone says whether the token's id is odd; layer by layer the same.

    Codes 0 and 1 are that direction and its opposite, which the encoder leaves as good as unchanged.
    """

    def __init__(self) -> None:
        super().__init__(0)
        draw = np.random.default_rng(0)
        directions, _ = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))
        self.value, loud = directions[0], directions[1]
        ids = np.arange(60)
        table = draw.normal(0, 0.2, (60, WIDTH))
        table -= np.outer(table @ self.value, self.value)
        table += np.outer(np.where(ids % 2, 3.0, -3.0), self.value) + np.outer(draw.normal(0, 4, 60), loud)
        self._table = np.repeat(table[:, None], LAYOUT.layers + 1, 1)
        others = draw.normal(0, 1, (30, WIDTH))
        others -= np.outer(others @ self.value, self.value)
        # Far away, so that nearest codes are the first two.
        others *= 1000 / np.linalg.norm(others, axis=1, keepdims=True)
        codes = np.concatenate([-3 * self.value[None], 3 * self.value[None], others]).astype("<f4")
        encoder = np.zeros(WIDTH**2 + 3 * WIDTH + 1, "<f4")
        encoder[0] = -30  # m is as good as 0
        self.book = GivenCodebook(LAYOUT.layers, WIDTH, 1, "revision", encoder.tobytes(), codes.tobytes())

    def answer(self, operation: Operation, task: TokenTask) -> object:
        if not isinstance(operation, ProbeStates):
            return super().answer(operation, task)
        result = probe(operation)
        operation.check(result)
        return result


PLANTED = Planted()


def run(task: TokenTask, asked: AblateParameters) -> tuple[Artifact, list[Operation]]:
    METHOD.check(asked, resolved(task))
    found = MethodRun(METHOD, resolved(task), asked, lambda each: PLANTED.answer(each, task))
    assert found.artifact is not None
    assert found.context.progress.done == METHOD.total(asked, resolved(task))
    return found.artifact, found.asked


def last_is_odd(task: TokenTask) -> tuple[int, ...]:
    return tuple(7 + ids[-1] % 2 for ids in task.clean)


def test_without_the_planted_code_labels_are_guessed_and_controls_keep_them() -> None:
    task = texts(0, 600, longest=8)
    asked = AblateParameters(PLANTED.book, 3, last_is_odd(task))
    artifact, operations = run(task, asked)
    figures = artifact.figures
    assert figures["accuracy"] > 0.99
    assert abs(figures["code"] - 0.5) < 4 * np.sqrt(0.25 / 600)
    assert min(figures[name] for name in ("random", "component")) > 0.97
    assert figures["other_code"] > 0.9
    assert 0.5 <= figures["chance"] < 0.6
    assert artifact.warnings == ()
    header, arrays = unpack(artifact.data)
    assert (header["removed"], header["next_tokens"], header["names"]) == (list(REMOVED), False, [])
    assert arrays["classes"].tolist() == [7, 8]
    assert arrays["positions"].tolist() == [len(ids) - 1 for ids in task.clean]
    assert arrays["own"].tolist() == [ids[-1] % 2 for ids in task.clean]
    captured = [each for each in operations if isinstance(each, CaptureStates)]
    assert {each.layers for each in captured} == {(1, 3)}
    right = arrays["predicted"].reshape(len(REMOVED), -1) == arrays["labels"]
    assert right.mean(1).tolist() == [figures[name] for name in ("accuracy", *REMOVED[1:])]


def test_each_state_is_held_out_once_and_the_same_request_gives_the_same_bits() -> None:
    task = texts(1, 60, longest=8)
    asked = AblateParameters(PLANTED.book, 1, last_is_odd(task), seed=5)
    first, operations = run(task, asked)
    probes = [each for each in operations if isinstance(each, ProbeStates)]
    assert len(probes) == FOLDS
    assert (sum(each.held_out.astype(int) for each in probes) == 1).all()
    assert run(task, asked)[0].data == first.data
    other, _ = run(task, AblateParameters(PLANTED.book, 1, last_is_odd(task), seed=6))
    assert other.data != first.data


def test_positions_say_which_token_is_salient() -> None:
    task = TokenTask(tuple((number % 60, 1 + number % 3, 5) for number in range(60)))
    labels = tuple(ids[0] % 2 for ids in task.clean)
    artifact, _ = run(task, AblateParameters(PLANTED.book, 2, labels, (0, -3) * 30))
    assert artifact.figures["accuracy"] > 0.9
    assert unpack(artifact.data)[1]["positions"].tolist() == [0] * 60
    last, _ = run(task, AblateParameters(PLANTED.book, 2, labels))
    assert last.figures["accuracy"] < 0.7
    assert "hardly more than" in last.warnings[0]


def test_without_labels_the_most_frequent_next_tokens_are_told_apart() -> None:
    task = texts(2, 200, vocabulary=20)
    artifact, _ = run(task, AblateParameters(PLANTED.book, 2))
    header, arrays = unpack(artifact.data)
    assert header["next_tokens"]
    assert header["names"] == [f"t{token}" for token in arrays["classes"].tolist()]
    for text, position, label in zip(
        *(arrays[n].tolist() for n in ("texts", "positions", "labels")), strict=True
    ):
        assert task.clean[text][position + 1] == arrays["classes"][label]
        assert position >= 1
    following = np.concatenate([ids[2:] for ids in task.clean if len(ids) > 2])
    counts = np.bincount(following)
    assert set(arrays["classes"].tolist()) == set(np.lexsort((np.arange(20), -counts))[:NEXT_TOKENS].tolist())


def test_texts_are_held_out_as_a_whole_and_labels_evenly() -> None:
    many = next_tokens(texts(3, 40, vocabulary=6).clean, 1, 0, WIDTH)
    folds = many.folds(0)
    assert all(len(set(folds[many.texts == text].tolist())) == 1 for text in np.unique(many.texts))
    assert set(folds.tolist()) == set(range(FOLDS))
    one = labelled([(1, 2)] * 100, [0] * 75 + [4] * 25, (), WIDTH)
    assert [np.bincount(one.labels[one.folds(1) == fold]).tolist() for fold in range(FOLDS)] == [
        [15, 5]
    ] * FOLDS
    assert one.folds(1).tolist() != one.folds(2).tolist()


def test_rows_are_found_in_parts_of_texts() -> None:
    examples = Examples(
        np.array([0, 0, 2, 3, 3]), np.array([1, 4, 0, 2, 3]), np.zeros(5, np.int32), np.array([9])
    )
    spans = examples.spans()
    assert [(span.text, span.first, span.last) for span in spans] == [(0, 1, 5), (2, 0, 1), (3, 2, 4)]
    assert examples.rows_of(spans).tolist() == [0, 3, 4, 5, 6]
    assert examples.rows_of(spans[1:]).tolist() == [0, 1, 2]


FIVE = TokenTask(tuple((number, number + 1, 3) for number in range(12)))
TWO = (0, 1) * 6


@pytest.mark.parametrize(
    ("parameters", "field", "words"),
    [
        ({"labels": TWO[:-1]}, "labels", "one for each of 12 texts, got 11"),
        ({"labels": (0,) * 12}, "labels", "2 to 64 different ones, got 1"),
        ({"labels": (0,) * 8 + (3,) * 4}, "labels", "at least 5 texts, got 4 of label 3"),
        ({"labels": TWO, "positions": (0,)}, "positions", "one for each of 12 texts, got 1"),
        ({"labels": TWO, "positions": (0,) * 11 + (3,)}, r"positions[11]", "from -3 to 2, .* got 3"),
        ({"labels": TWO, "positions": (-4,) * 12}, "positions[0]", "got -4"),
        ({"labels": TWO, "layer": 4}, "layer", "to 3, after the last layer of the model, got 4"),
        ({"skip": 2}, "labels", "at least 5 texts of more than 3 tokens"),
        ({}, "labels", "are needed: fewer than 2 tokens come next"),
    ],
)
def test_texts_that_do_not_fit(parameters: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        METHOD.check(AblateParameters(**{"codebook": PLANTED.book, "layer": 2, **parameters}), resolved(FIVE))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"codebook": 3}, "codebook"),
        ({"layer": -1}, "layer"),
        ({"layer": True}, "layer"),
        ({"seed": -1}, "seed"),
        ({"skip": -1}, "skip"),
        ({"labels": "ab"}, "labels"),
        ({"labels": (0, -1)}, "labels[1]"),
        ({"labels": (0, 1.5)}, "labels[1]"),
        ({"positions": (0,)}, "positions"),
    ],
)
def test_values_that_are_not_allowed(parameters: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        METHOD.read({"codebook": PLANTED.book, "layer": 1, **parameters})
    assert caught.value.field == field


def test_too_many_texts_are_refused_and_too_many_next_tokens_drawn_from() -> None:
    count = MOST_EXAMPLES + 1
    with pytest.raises(InvalidRequestError, match="at most 4096 for a model of width 16, got 4097"):
        labelled([(1,)] * count, [0, 1] * (count // 2) + [0], (), WIDTH)
    draw = np.random.default_rng(0)
    long = [tuple(draw.integers(0, 3, 2000).tolist()) for _ in range(5)]
    assert np.bincount(next_tokens(long, 1, 0, WIDTH).labels).tolist() == [256] * 3
    assert len(next_tokens(long, 1, 0, 1 << 18)) <= 32


def test_other_models_and_what_is_stored() -> None:
    asked = AblateParameters(codebook(0), 2, TWO, (-1,) * 12, 4, 3)
    assert METHOD.read_stored(METHOD.stored(asked)) == asked
    with pytest.raises(OtherModelError):
        METHOD.check(AblateParameters(codebook(0, revision="x"), 2, TWO), resolved(FIVE))
    with pytest.raises(InvalidRequestError, match="rounds activations"):
        METHOD.check(AblateParameters(codebook(0), 2, TWO), resolved(FIVE, "fp8"))
