"""Text of a real model whose planted value neurons are steered, by a server in this process."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.model_server import client_of_models
from helpers.texts import Texts
from helpers.value_model import ANSWERS, NEUTRAL, OPPOSITE, VALUE, ValueModel

from pahq_client import Client, JobFailed, NeuronSet, Samples
from pahq_server.core.activations import ScoreContinuations, Span, Steering

pytestmark = pytest.mark.filterwarnings("ignore::pahq_client.PahqWarning")

K = 12
PROMPTS = [list(NEUTRAL)[:length] for length in (3, 9, 12)]
ASKED: dict[str, Any] = {"n": 40, "max_tokens": 18, "seed": 5, "logprobs": True}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("value")
    ValueModel(folder, K)
    with client_of_models({"value": folder}) as connected:
        yield connected


@pytest.fixture(scope="module")
def neurons(client: Client, tmp_path_factory: pytest.TempPathFactory) -> NeuronSet:
    model = ValueModel(tmp_path_factory.mktemp("texts"), K)
    texts = [[list(ids) for ids in model.texts(30, seed, side)] for seed, side in ((1, VALUE), (2, OPPOSITE))]
    found = client.locate_neurons("value", *texts)
    assert len(found) == 2 * K
    return found


def lean(samples: Samples) -> int:
    """How many more tokens are the one answer than the other."""
    said = [token for sample in samples for token in sample.ids]
    return said.count(ANSWERS[0]) - said.count(ANSWERS[1])


def test_what_is_said_leans_with_the_strength(client: Client, neurons: NeuronSet) -> None:
    plain = client.generate("value", PROMPTS, **ASKED)
    leaning = [
        lean(client.generate("value", PROMPTS, steer=(neurons, g), **ASKED)) for g in (-8, -4, 0, 4, 8)
    ]
    assert leaning == sorted(set(leaning))
    assert leaning[2] == lean(plain)
    control = client.generate("value", PROMPTS, steer=(neurons.matched_control(0), 8), **ASKED)
    assert abs(lean(control) - lean(plain)) < (leaning[4] - leaning[2]) / 3


def test_samples_are_as_likely_as_texts_are_that_are_scored(
    client: Client, neurons: NeuronSet, tmp_path: Path
) -> None:
    """The engine's own pass over texts makes the same edit, by other code."""
    edit = Steering(**vars(neurons.edit(3.0)))
    samples = client.generate("value", PROMPTS, steer=(neurons, 3.0), **{**ASKED, "n": 4})
    texts = [(*map(int, sample.prompt), *sample.ids) for sample in samples]
    spans = [Span(i, len(ids) - len(samples[i].ids), len(ids)) for i, ids in enumerate(texts)]
    model = ValueModel(tmp_path, K)
    scored = ScoreContinuations(spans, edit, sum(map(len, texts)))
    found = Texts(model.loaded, tuple(texts)).run(scored)
    assert found == pytest.approx([sample.logprob for sample in samples], abs=1e-3)
    unsteered = Texts(model.loaded, tuple(texts)).run(replace(scored, steering=None))
    assert abs(found - unsteered).min() > 0.01


def test_jobs_of_several_strengths_at_once(client: Client, neurons: NeuronSet) -> None:
    """Whatever runs beside them, in which order, and in how many slots."""
    strengths = (None, 2.0, -2.0, 5.0)
    alone = [client.generate("value", PROMPTS, steer=g and (neurons, g), **ASKED) for g in strengths]

    def again(number: int) -> Samples:
        g, how = strengths[number], (("fifo", 7), ("longest_first", 3), ("rounds", 30), ("sjf", 11))[number]
        return client.generate(
            "value", PROMPTS, steer=g and (neurons, g), policy=how[0], slots=how[1], **ASKED
        )

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(again, range(4)))
    assert [each.items for each in together] == [each.items for each in alone]
    assert len({each.items for each in alone}) == 4


def test_a_strength_that_breaks_the_model_fails_its_own_job_only(client: Client, neurons: NeuronSet) -> None:
    expected = client.generate("value", PROMPTS, **ASKED)
    broken = client.submit_generate("value", PROMPTS, steer=(neurons, 1e38), **ASKED)
    beside = client.submit_generate("value", PROMPTS, slots=4, **ASKED)
    with pytest.raises(JobFailed, match="not finite"):
        broken.result()
    found = beside.result()
    assert isinstance(found, Samples)
    assert found.items == expected.items
