"""Sampling with steered neurons as a method: what may be asked, what is kept, and interruptions."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.fake_engine import nodes_of
from helpers.fake_generator import OFFER, decode, whole
from helpers.steering import sized_steering

from pahq_server.core.activations import NeuronSteering
from pahq_server.core.artifact import Artifact
from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import ResolvedObjective
from pahq_server.core.errors import InvalidRequestError, OtherModelError
from pahq_server.core.generation import GenerationOffer
from pahq_server.core.graph import Graph
from pahq_server.methods.base import MethodContext
from pahq_server.methods.generate.method import Generate
from pahq_server.methods.generate.samples import FinishedSample, sample_seed, samples_bytes

from .test_generate import GRAPH, PROMPTS, edges, parameters, resolved

NODES = nodes_of(GRAPH)
EDIT = sized_steering(1, NODES.layers * NODES.d_mlp)
STEERING = NeuronSteering(NODES.layers, NODES.d_mlp, "c0ffee", EDIT)
METHOD = Generate()


def objective(offer: GenerationOffer = OFFER) -> ResolvedObjective:
    return replace(resolved(offer), nodes=NODES)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_bytes_whatever_policy_slots_and_interruptions(seed: int) -> None:
    source = random.Random(seed)
    asked = parameters(steering=STEERING, logprobs=True, slots=source.randint(1, 9), seed=seed)
    METHOD.check(asked, objective())
    samples = []
    for key in range(24):
        known = whole(PROMPTS[key // 8], sample_seed(seed, key % 8), 24, EDIT)
        samples.append(FinishedSample(key, known.ids, known.logprobs, known.finish, ""))
    journal: list[bytes] = []
    artifact: Artifact | None = None
    while artifact is None:
        context = MethodContext(objective(), asked, journal)
        steps, result = METHOD.run(context), None
        for _ in range(source.randint(1, 12)):  # until it is killed
            try:
                operation = steps.send(result)
            except StopIteration as end:
                artifact = end.value
                break
            assert all(request.steering == EDIT for request in operation.requests)
            result = decode(operation)
            journal = [b"".join((*journal, context.take_records().data))]
    assert artifact.data == samples_bytes(samples, PROMPTS, 8, True, texts=False)


def test_it_is_stored_and_told() -> None:
    asked = parameters(steering=STEERING)
    assert METHOD.read_stored(json.loads(json.dumps(METHOD.stored(asked)))) == asked
    assert METHOD.described(asked)["steering"] == STEERING.described()
    assert len(json.dumps(METHOD.described(asked))) < 500
    assert "steering" not in METHOD.identity(parameters()), "keys of earlier jobs stay"
    others = [
        replace(STEERING, edit=replace(EDIT, amounts=EDIT.amounts * 2)),
        replace(STEERING, edit=replace(EDIT, lowered=EDIT.lowered[1:])),
        replace(STEERING, edit=sized_steering(2, NODES.layers * NODES.d_mlp)),
    ]
    keys = {json.dumps(METHOD.identity(parameters(steering=each))) for each in (None, STEERING, *others)}
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("steering", "where", "field", "words"),
    [
        (replace(STEERING, revision="bad"), objective(), "steering", "another model"),
        (replace(STEERING, layers=9), objective(), "steering", "another model"),
        (STEERING, replace(objective(), revision="bad"), "steering", "another model"),
        (replace(STEERING, edit=replace(EDIT, lowered=np.array([12]))), objective(), "steering.lowered[0]",
         "must be from 0 to 11"),
        (STEERING, replace(objective(), nodes=nodes_of(Graph(2, 4, 2, mlps=False))), "steering",
         "has no MLPs"),
        (STEERING, objective(replace(OFFER, no_steering="the abacus has no neurons")), "steering",
         "the abacus has no neurons"),
    ],
)  # fmt: skip
def test_steering_that_does_not_do(
    steering: NeuronSteering, where: ResolvedObjective, field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        METHOD.check(parameters(steering=steering), where)
    assert caught.value.field == field
    assert words in caught.value.detail
    assert isinstance(caught.value, OtherModelError) == ("another model" in words)


@pytest.mark.parametrize("changes", [{"circuit": edges(Circuit.full(GRAPH))}, {"steering": 3}])
def test_what_does_not_go_together(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parameters(**{"steering": STEERING, **changes})
    assert caught.value.field == "steering"
