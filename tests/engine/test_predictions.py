"""What the full model predicts: against logits of the literal executor, prompt by prompt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.circuit import Circuit
from pahq_server.core.engine import Objective, Work
from pahq_server.core.errors import NonFiniteMetricError, ResourceExhaustedError
from pahq_server.core.operations import LikeliestTokens, MeasureAccuracy, TaskAccuracy, TopTokens
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.demo import model_path
from pahq_server.engine import predictions
from pahq_server.engine.backends import EXECUTORS
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.literal import LiteralExecutor
from pahq_server.models.architecture import Model
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES

LENGTHS = (7, 4, 6, 5)


def logits_of(
    model: Model, prompts: tuple[tuple[int, ...], ...], positions: tuple[int, ...] | None
) -> Tensor:
    """The slow, obvious twin: each prompt alone, layer by layer, in float64."""
    graph = model.architecture.graph("query")
    rows = [
        LiteralExecutor(model, graph, TokenTask((ids,), positions=positions), "l2", "zero").logits(
            Circuit.full(graph)
        )
        for ids in prompts
    ]
    return torch.cat(rows)


def accuracy_of(logits_NU: Tensor, answers: list[int], wrong: list[int]) -> TaskAccuracy:
    rows = logits_NU.tolist()
    margins = [row[a] - row[w] for row, a, w in zip(rows, answers, wrong, strict=True)]
    above = [margin > 0 for margin in margins]
    best = [max(range(len(row)), key=row.__getitem__) == a for row, a in zip(rows, answers, strict=True)]
    return TaskAccuracy(*(sum(each) / len(rows) for each in (above, best, margins)))


def asked(task: TokenTask, ablation: str = "resample", model: str = "toy") -> Objective:
    def single(ids: tuple[int, ...] | None) -> tuple[tuple[int], ...]:
        return tuple((token,) for token in ids or ())

    prompts = PromptTask(
        task.clean, task.corrupted or (), single(task.answers), single(task.wrong_answers), task.positions
    )
    return Objective(model, prompts, "l2", ablation, "group", "fp32")


def run(engine: ModelEngine, objective: Objective, operation: object) -> object:
    state = engine.open(engine.resolve(objective))
    try:
        (outcome,) = engine.run([Work(state, operation)])  # type: ignore[arg-type]
    finally:
        engine.close(state)
    if isinstance(outcome, Exception):
        raise outcome
    operation.check(outcome)  # type: ignore[attr-defined]
    return outcome


def skilled(model: Model, positions: tuple[int, ...] | None = None) -> TokenTask:
    """A task of unequal lengths that the model does in a part of the prompts, clean and corrupted."""
    task = replace(random_task(model, lengths=LENGTHS), positions=positions)
    last = logits_of(model, task.clean, None)
    answers = list(task.answers or ())
    answers[0], answers[1] = int(last[0].argmax()), int(last[1].topk(2).indices[1])
    return replace(task, answers=tuple(answers))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positions", [None, (3, 0)])
def test_predictions_are_those_of_each_prompt_alone(
    name: str, executor: str, positions: tuple[int, ...] | None, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engine = zoo[name], ModelEngine({"toy": load(str(zoo.path(name)))}, executor)
    monkeypatch.setattr(predictions, "LOGITS_AT_ONCE", 2 * model.architecture.output_vocabulary)
    task = skilled(model, positions)
    assert task.corrupted is not None
    clean, corrupted = (logits_of(model, prompts, positions) for prompts in (task.clean, task.corrupted))

    found = run(engine, asked(task), LikeliestTokens(len(clean), 5))
    assert isinstance(found, TopTokens)
    best = clean.topk(5)
    np.testing.assert_array_equal(found.ids, best.indices)
    np.testing.assert_allclose(found.logits, best.values, atol=1e-4)
    np.testing.assert_allclose(found.probabilities, clean.softmax(-1).gather(-1, best.indices), rtol=1e-4)

    each = 1 if positions is None else len(positions)
    columns = (task.answers or (), task.wrong_answers or ())
    answers, wrong = ([token for token in ids for _ in range(each)] for ids in columns)
    expected = [accuracy_of(logits, answers, wrong) for logits in (clean, corrupted)]
    for ablation, wanted in (("resample", expected), ("zero", expected[:1])):
        accuracies = run(engine, asked(task, ablation), MeasureAccuracy(len(wanted) == 2))
        assert isinstance(accuracies, list)
        for accuracy, its in zip(accuracies, wanted, strict=True):
            assert (accuracy.above_wrong, accuracy.likeliest) == (its.above_wrong, its.likeliest)
            assert accuracy.logit_difference == pytest.approx(its.logit_difference, abs=1e-4)
    if positions is None:
        assert expected[0].likeliest > 0


def test_accuracy_is_that_of_the_margins_of_the_clean_run(zoo: Zoo) -> None:
    engine, task = ModelEngine({"toy": load(str(zoo.path("llama")))}), skilled(zoo["llama"])
    resolved = engine.resolve(asked(task))
    state = engine.open(resolved)
    ((clean, _),) = engine.run([Work(state, MeasureAccuracy(True))])  # type: ignore[misc]
    margins = resolved.clean_run.margins
    assert margins is not None
    assert clean.logit_difference == pytest.approx(sum(margins) / len(margins), abs=1e-5)
    assert clean.above_wrong == sum(margin > 0 for margin in margins) / len(margins)


def test_more_tokens_than_there_are_gives_all(zoo: Zoo) -> None:
    engine = ModelEngine({"toy": load(str(zoo.path("hooked")))})
    found = run(engine, asked(TokenTask(((1, 2),)), "zero"), LikeliestTokens(1, 100))
    assert isinstance(found, TopTokens)
    vocabulary = zoo["hooked"].architecture.output_vocabulary
    assert sorted(found.ids[0]) == list(range(vocabulary))
    assert found.probabilities.sum() == pytest.approx(1.0)


def test_equal_logits_are_in_the_order_of_their_ids_and_no_success(zoo: Zoo) -> None:
    with torch.inference_mode():
        flat = load(str(zoo.path("hooked")))
        flat.model.weights.w_u[:] = 0.0
        if flat.model.weights.b_u is not None:
            flat.model.weights.b_u[:] = 0.0
    engine = ModelEngine({"toy": flat})
    task = TokenTask(((1, 2), (3,)), answers=(0, 1), wrong_answers=(2, 3))
    found = run(engine, asked(task, "zero"), LikeliestTokens(2, 4))
    assert isinstance(found, TopTokens)
    assert found.ids.tolist() == [[0, 1, 2, 3]] * 2
    assert run(engine, asked(task, "zero"), MeasureAccuracy(False)) == [TaskAccuracy(0.0, 0.0, 0.0)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_logits_that_are_not_finite_are_an_error(executor: str, zoo: Zoo) -> None:
    """Also where only a token is concerned that nobody asked for: it may be the likeliest."""
    with torch.inference_mode():
        broken = load(str(zoo.path("gpt2")))
        broken.model.weights.w_u[:, 7] = torch.inf
    engine = ModelEngine({"toy": broken}, executor)
    task = TokenTask(((1, 2),), answers=(1,), wrong_answers=(2,))
    state = engine.open(engine.resolve(asked(task, "zero")))
    for operation in (LikeliestTokens(1, 1), MeasureAccuracy(False)):
        (outcome,) = engine.run([Work(state, operation)])
        assert isinstance(outcome, NonFiniteMetricError)
        assert "a logit of the full model is not finite" in str(outcome)


def test_a_lack_of_memory_is_told(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ModelEngine({"toy": load(str(zoo.path("gpt2")))})

    def refuse(*_: object) -> Tensor:
        raise MemoryError

    state = engine.open(engine.resolve(asked(TokenTask(((1, 2),)), "zero")))
    monkeypatch.setattr("pahq_server.engine.sparse.executor.full_logits", refuse)
    (outcome,) = engine.run([Work(state, LikeliestTokens(1, 1))])
    assert isinstance(outcome, ResourceExhaustedError)


def test_a_server_of_rounded_weights_answers_in_full_precision() -> None:
    path, task = str(model_path()), TokenTask(((5, 6, 7), (8,)))
    models = load(path), load_rounded(path, POLICIES["pahq-int8"])
    tops = [run(ModelEngine({"toy": each}), asked(task, "zero"), LikeliestTokens(2, 3)) for each in models]
    assert all(isinstance(top, TopTokens) for top in tops)
    np.testing.assert_array_equal(tops[0].ids, tops[1].ids)  # type: ignore[attr-defined]
    np.testing.assert_allclose(tops[0].logits, tops[1].logits, atol=1e-4)  # type: ignore[attr-defined]


def test_tokens_as_text(tmp_path: Path, zoo: Zoo) -> None:
    demo, plain = load(str(model_path())), load(str(zoo.path("gpt2")))
    engine = ModelEngine({"demo": demo, "plain": plain})
    (text,) = engine.tokenize("demo", [" Lily and Tom"], special=True, prompt="")
    *before, tom = text.ids
    assert engine.token_texts("demo", [tuple(before)], [[tom]]) == [[" Tom"]]
    assert engine.token_texts("plain", [(1, 2), (3,)], [[5], [6, 7]]) == [[""], ["", ""]]
