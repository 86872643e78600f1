"""Planted value neurons of a model are found, all of them and no others, by the engine in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pruning import Engine
from helpers.texts import Texts
from helpers.value_model import ANSWERS, HIDDEN, LAYERS, NEUTRAL, OPPOSITE, ValueModel

from pahq_client import NeuronSet
from pahq_client.artifacts import decode
from pahq_client.dose_response import mean_difference
from pahq_server.core.activations import NeuronSteering, Span, Steering, SumNeurons
from pahq_server.core.artifact import unpack
from pahq_server.core.task import PromptTask

TEXTS = 30


def located(model: ValueModel, seed: int, **parameters: Any) -> NeuronSet:
    texts = (*model.texts(TEXTS, seed), *model.texts(TEXTS, seed + 1, OPPOSITE))
    engine = Engine(model.loaded, PromptTask(texts), "zero")
    artifact = engine.run("neurons", positive=TEXTS, **parameters)
    found = decode(artifact.kind, artifact.version, artifact.data, {})
    assert isinstance(found, NeuronSet)
    return found


@pytest.mark.parametrize("k", [1, 2, 5, 12, 32])
def test_precision_and_recall_are_one(k: int, tmp_path: Path) -> None:
    model = ValueModel(tmp_path, k, seed=k)
    found = located(model, seed=k)
    assert sorted(found.numbers(found.raised)) == model.raised.tolist()
    assert sorted(found.numbers(found.lowered)) == model.lowered.tolist()
    assert min(neuron.delta for neuron in found.raised) > 0.3
    assert all(neuron.q95 > 0.5 for neuron in found)


def test_what_is_told_is_what_the_dense_activations_say(tmp_path: Path) -> None:
    """Each text alone gives the counts that all give together."""
    model = ValueModel(tmp_path, 4)
    texts = (*model.texts(TEXTS, 7), *model.texts(TEXTS, 8, OPPOSITE))
    found = located(model, seed=7)
    runs = Texts(model.loaded, texts)
    spans = [Span(number, 0, len(ids)) for number, ids in enumerate(texts)]
    total = sum(map(len, texts))
    alone = [runs.run(SumNeurons([span], LAYERS * HIDDEN, total)) for span in spans]
    shares = [
        sum(each.positive for each in part) / sum(each.tokens for each in part)
        for part in (alone[:TEXTS], alone[TEXTS:])
    ]
    for neuron, number in zip(found, found.numbers(list(found)).tolist(), strict=True):
        assert (neuron.positive_share, neuron.negative_share) == (shares[0][number], shares[1][number])
    numbers = np.array([found.numbers(found.raised[:1])[0]])
    for place in found.raised[0].places:
        span = Span(place.text, place.position, place.position + 1)
        details = runs.details([span], numbers.tolist(), 1)
        assert details.top.values[0, 0] == place.value


def test_the_last_tokens_alone(tmp_path: Path) -> None:
    model = ValueModel(tmp_path, 3)
    found = located(model, seed=3, starts=(-1,) * (2 * TEXTS), top_k=2)
    assert found.tokens == (TEXTS, TEXTS)
    assert {int(number) for number in found.numbers(found.raised)} <= set(model.raised.tolist())
    assert len(found.raised) == 2


@pytest.mark.parametrize("k", [1, 8, 32])
def test_steering_moves_the_answers_with_the_strength_and_controls_do_not(k: int, tmp_path: Path) -> None:
    model = ValueModel(tmp_path, k, seed=k)
    found = located(model, seed=k)
    prompts = model.texts(12, 100 + k, NEUTRAL)
    texts = tuple((*prompt, answer) for prompt in prompts for answer in ANSWERS)
    engine = Engine(model.loaded, PromptTask(texts), "zero")

    def difference(neurons: NeuronSet, strength: float) -> float:
        edit = neurons.edit(strength)
        given = Steering(edit.raised, edit.amounts, edit.lowered) if strength else None
        steering = None if given is None else NeuronSteering(LAYERS, HIDDEN, "", given)
        starts = tuple(len(ids) - 1 for ids in texts)
        artifact = engine.run("continuations", starts=starts, steering=steering)
        return mean_difference(unpack(artifact.data)[1]["logprobs"].tolist())

    strengths = (-2.0, -1.0, 0.0, 1.0, 2.0)
    values = [difference(found, strength) for strength in strengths]
    assert values == sorted(values)
    assert len(set(values)) == 5
    effect = values[-1] - values[0]
    for seed in range(5):
        control = found.matched_control(seed)
        assert abs(difference(control, 2.0) - difference(control, -2.0)) < 0.2 * effect
