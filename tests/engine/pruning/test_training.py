"""Operations of node pruning on an engine: policies, memory, bad numbers, what batches share."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo

from pahq_server.core.engine import EngineStateId, Objective, Work
from pahq_server.core.errors import InvalidRequestError, NonFiniteMetricError, ResourceExhaustedError
from pahq_server.core.operations import Operation
from pahq_server.core.pruning import (
    PRECISIONS,
    Mask,
    MaskFigures,
    MeasureMasks,
    NodeLayout,
    Penalty,
    Training,
    TrainMasks,
)
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.frozen_weights import FrozenWeights
from pahq_server.engine.pruning import job as job_module
from pahq_server.engine.pruning.job import PruningJob, layout_of
from pahq_server.engine.pruning.training import train
from pahq_server.engine.sparse.quantized import QuantizedModel
from pahq_server.memory.pool import PagePool
from pahq_server.models.architecture import LayerWeights, Model, Weights
from pahq_server.models.folding import fold
from pahq_server.models.loading import load
from pahq_server.models.streaming import load_rounded
from pahq_server.precision.policy import POLICIES
from pahq_server.precision.quantized import to_floats

ABLATIONS = ("resample", "zero", "mean")
TASK = PromptTask(((1, 2, 3), (4, 5), (6, 2, 1)), ((1, 9, 3), (4, 7), (8, 2, 1)), ((3,),) * 3, ((5,),) * 3)


def engine_of(zoo: Zoo, name: str = "gpt2", **options: Any) -> ModelEngine:
    return ModelEngine({"model": load(str(zoo.path(name)))}, **options)


def opened(
    engine: ModelEngine, ablation: str = "resample", precision: str = "fp32", task: PromptTask = TASK
) -> EngineStateId:
    objective = Objective("model", task, "kl_divergence", ablation, "group", precision)
    return engine.open(engine.resolve(objective, activations=False))


def outcome(engine: ModelEngine, state: EngineStateId, operation: Operation) -> Any:
    (found,) = engine.run([Work(state, operation)])
    if isinstance(found, Exception):
        raise found
    operation.check(found)
    return found


def start(layout: NodeLayout, seed: int = 0) -> Training:
    log_alpha = np.random.default_rng(seed).normal(0.5, 1.5, layout.size).astype(np.float32)
    return Training(log_alpha, np.zeros_like(log_alpha), np.zeros_like(log_alpha), 0, 0.5)


def steps(layout: NodeLayout, count: int, training: Training | None = None, **options: Any) -> TrainMasks:
    penalty = Penalty(dict.fromkeys(layout.kinds, 1e-3), learning_rate=0.05, **options)
    return TrainMasks(layout, training or start(layout), count, penalty)


def random_masks(layout: NodeLayout, count: int) -> list[Mask]:
    rng = np.random.default_rng(5)
    return [rng.random(layout.size) < share for share in np.linspace(0.5, 1, count)]


def bits(training: Training) -> tuple[bytes, ...]:
    return training.log_alpha.tobytes(), training.first.tobytes(), training.second.tobytes()


# What a result depends on


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_steps_have_the_same_bits_in_any_pieces_on_any_engine_beside_any_job(ablation: str, zoo: Zoo) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine, ablation)
    whole = outcome(engine, state, steps(layout, 5, task_loss=0.2, seed=3))
    other = engine_of(zoo)
    mine, others = opened(other, ablation), opened(other, "zero")
    training, divergences = start(layout), ()
    for count in (2, 1, 2):
        outcome(other, others, steps(layout, 1, seed=9))
        outcome(other, mine, MeasureMasks(layout, random_masks(layout, 2)))
        part = outcome(other, mine, steps(layout, count, training, task_loss=0.2, seed=3))
        training, divergences = part.training, (*divergences, *part.kl)
    assert bits(training) == bits(whole.training)
    assert divergences == whole.kl
    assert part.sizes == whole.sizes


def test_a_seed_changes_what_training_finds(zoo: Zoo) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine)
    found = [outcome(engine, state, steps(layout, 2, seed=seed)).training for seed in (0, 1)]
    assert bits(found[0]) != bits(found[1])


def test_figures_do_not_depend_on_what_is_measured_beside(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine)
    masks = random_masks(layout, 5)[::-1]
    # The full circuit twice, and one that differs in the last layer alone.
    late = masks[0].copy()
    late[dict(layout.slices())["heads"].stop - 1] = False
    masks += [masks[0].copy(), late]
    alone: list[MaskFigures] = [outcome(engine, state, MeasureMasks(layout, [mask]))[0] for mask in masks]
    assert outcome(engine, state, MeasureMasks(layout, masks)) == alone
    assert alone[-2] == alone[0] != alone[-1]
    monkeypatch.setattr(job_module, "MASKS_AT_ONCE", 2)
    assert outcome(engine, state, MeasureMasks(layout, masks)) == alone


def test_positions_before_the_first_difference_need_no_circuit(zoo: Zoo) -> None:
    """Prompts that begin alike, so that the circuit's run begins later, and the same under other words."""
    model = zoo["mistral"]
    task = random_task(model, (8, 9, 6))
    assert task.corrupted is not None
    corrupted = tuple((*good[:4], *bad[4:]) for good, bad in zip(task.clean, task.corrupted, strict=True))
    task = replace(task, corrupted=corrupted)
    # A prompt that differs at its first token makes the circuit's run begin there, and counts for itself.
    both = TokenTask((*task.clean, (1, 2, 3)), (*corrupted, (2, 2, 3)))
    weights = FrozenWeights(fold(model))
    tokens = 1000  # all in one part
    alone = both.part(slice(3, 4))
    late, early, single = (
        PruningJob(weights, weights, each, "resample", PagePool(1 << 22), tokens)
        for each in (task, both, alone)
    )
    z = torch.rand(late.layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (of_late, d_late), (of_early, d_early), (of_single, d_single) = (
        each.loss_with_gradient(z) for each in (late, early, single)
    )
    assert 3 * of_late.kl + of_single.kl == pytest.approx(4 * of_early.kl, rel=1e-10)
    torch.testing.assert_close(3 * d_late + d_single, 4 * d_early, atol=1e-11, rtol=1e-9)


# Precision policies


def in_floats(model: Model, quantized: QuantizedModel) -> Model:
    """The model with rounded weights as plain numbers."""
    layers = []
    for layer in quantized.layers:
        kept = {field.name: getattr(layer, field.name) for field in fields(layer)}
        for name, value in kept.items():
            if name.startswith("w_") and value is not None:
                kept[name] = to_floats(value, model.dtype)
        layers.append(LayerWeights(**kept))
    assert isinstance(model.weights, Weights)
    w_u = to_floats(quantized.w_u, model.dtype)
    return replace(model, weights=replace(model.weights, layers=tuple(layers), w_u=w_u))


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_policy_rounds_the_weights_of_the_circuit_and_not_those_of_the_full_model(
    name: str, precision: str, zoo: Zoo
) -> None:
    model = fold(zoo[name])
    quantized = QuantizedModel.of(model, POLICIES[precision])
    assert quantized is not None
    task, full = random_task(model), FrozenWeights(model)
    rounded = PruningJob(full, FrozenWeights(model, quantized), task, "mean", PagePool(1 << 22))
    floats = FrozenWeights(in_floats(model, quantized))
    same = PruningJob(full, floats, task, "mean", PagePool(1 << 22))
    layout = rounded.layout
    masks = [np.ones(layout.size, dtype=bool), *random_masks(layout, 2)]
    for found, expected in zip(rounded.figures(masks), same.figures(masks), strict=True):
        assert found.kl == pytest.approx(expected.kl, rel=1e-9)
    assert 1e-9 < rounded.figures(masks[:1])[0].kl < 0.1
    z = torch.rand(layout.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (_, found_d), (_, expected_d) = rounded.loss_with_gradient(z), same.loss_with_gradient(z)
    torch.testing.assert_close(found_d, expected_d, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("precision", ["pahq-int8", "fp32"])
@pytest.mark.parametrize("name", NAMES)
def test_resident_weights_give_what_the_model_in_memory_gives(name: str, precision: str, zoo: Zoo) -> None:
    resident = ModelEngine({"model": load_rounded(str(zoo.path(name)), POLICIES["pahq-int8"])})
    layout = layout_of(zoo[name].architecture)
    task = random_task(zoo[name], (5, 3))
    prompts = PromptTask(task.clean, task.corrupted or ())
    figures, divergences = [], []
    for engine in (resident, engine_of(zoo, name)):
        state = opened(engine, "resample", precision, prompts)
        figures.append(outcome(engine, state, MeasureMasks(layout, random_masks(layout, 2))))
        divergences.append(outcome(engine, state, steps(layout, 1)).kl[0])
    for mine, theirs in zip(*figures, strict=True):
        assert mine.kl == pytest.approx(theirs.kl, rel=1e-4, abs=1e-6)
    assert divergences[0] == pytest.approx(divergences[1], rel=1e-4)


def test_precisions_are_the_policies_that_leave_activations_as_they_are() -> None:
    assert tuple(name for name, policy in POLICIES.items() if policy.operand == "differences") == PRECISIONS


def test_a_policy_that_rounds_activations_is_refused(zoo: Zoo) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    with pytest.raises(InvalidRequestError, match=r"rtn-int8.*pahq-int8"):
        outcome(engine, opened(engine, precision="rtn-int8"), steps(layout, 1))


def test_the_literal_executor_gives_the_same(zoo: Zoo) -> None:
    layout = layout_of(zoo["gpt2"].architecture)
    found = [
        outcome(engine, opened(engine), steps(layout, 2)).kl
        for engine in (engine_of(zoo), engine_of(zoo, executor="literal"))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# Bad numbers and missing things


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_loss_that_is_not_finite_is_named_with_its_step(ablation: str, zoo: Zoo) -> None:
    model = fold(zoo["gpt2"])
    layers = list(model.weights.layers)
    assert layers[1].b_out is not None
    layers[1] = replace(layers[1], b_out=torch.full_like(layers[1].b_out, torch.nan))
    broken = FrozenWeights(replace(model, weights=replace(model.weights, layers=tuple(layers))))
    whole = FrozenWeights(model)
    job = PruningJob(whole, broken, random_task(model), ablation, PagePool(1 << 22))
    operation = steps(job.layout, 2, replace(start(job.layout), step=7))
    with pytest.raises(NonFiniteMetricError, match="step 8"):
        operation.check(train(job, operation))
    measured = MeasureMasks(job.layout, random_masks(job.layout, 1))
    with pytest.raises(NonFiniteMetricError):
        measured.check(job.figures(measured.masks))


def test_a_task_loss_needs_answers(zoo: Zoo) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine, task=replace(TASK, answers=(), wrong_answers=()))
    with pytest.raises(InvalidRequestError, match="answers"):
        outcome(engine, state, steps(layout, 1, task_loss=0.1))
    (found,) = outcome(engine, state, MeasureMasks(layout, random_masks(layout, 1)))
    assert found.logit_difference is None
    assert found.accuracy is None


# Memory


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_pages_are_freed_with_the_state(ablation: str, zoo: Zoo) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine, ablation)
    assert engine.memory_usage().used == 0
    outcome(engine, state, steps(layout, 1))
    used = engine.memory_usage().used
    outcome(engine, state, steps(layout, 1))
    outcome(engine, state, MeasureMasks(layout, random_masks(layout, 3)))
    assert engine.memory_usage().used == used > 0
    engine.close(state)
    assert engine.memory_usage().used == 0


def test_a_pool_that_is_too_small_is_a_typed_error_and_keeps_nothing(zoo: Zoo) -> None:
    engine, layout = engine_of(zoo, memory_bytes=1 << 14), layout_of(zoo["gpt2"].architecture)
    state = opened(engine, "mean")
    for _ in range(2):
        with pytest.raises(ResourceExhaustedError, match="not enough memory"):
            outcome(engine, state, MeasureMasks(layout, random_masks(layout, 1)))
        assert engine.memory_usage().used == 0
    engine.close(state)


def test_without_memory_the_error_says_so_and_the_state_stays_usable(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, layout = engine_of(zoo), layout_of(zoo["gpt2"].architecture)
    state = opened(engine)
    with monkeypatch.context() as short:
        short.setattr(job_module.PruningJob, "loss_with_gradient", _no_memory)
        with pytest.raises(ResourceExhaustedError, match="not enough memory"):
            outcome(engine, state, steps(layout, 1))
    assert len(outcome(engine, state, steps(layout, 1)).kl) == 1


def _no_memory(*_: object) -> None:
    raise MemoryError("for the test")
