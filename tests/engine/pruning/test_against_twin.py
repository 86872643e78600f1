"""Node pruning by the engine against the slow twin, in float64: every architecture and ablation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.masked_model import MaskedModel, as_vector, expected_size, random_gates
from helpers.pruning import layout_of
from helpers.random_passes import random_task
from helpers.zoo import NAMES, Zoo
from torch import Tensor

from pahq_server.core.engine import Objective, Work
from pahq_server.core.pruning import (
    NODE_KINDS,
    Mask,
    MaskFigures,
    MeasureMasks,
    NodeKind,
    Penalty,
    Steering,
    Training,
    TrainMasks,
)
from pahq_server.core.task import PromptTask, TokenTask
from pahq_server.engine.engine import ModelEngine
from pahq_server.engine.pruning.gates import logistic_noise
from pahq_server.models.architecture import Model
from pahq_server.models.folding import fold
from pahq_server.models.loading import LoadedModel

ABLATIONS = ("resample", "zero", "mean")
WEIGHTS: dict[NodeKind, float] = {kind: 1e-3 * (number + 1) for number, kind in enumerate(NODE_KINDS)}


class Job:
    """A state of the engine with a random task of unequal lengths, and the twin of the same."""

    def __init__(self, model: Model, task: TokenTask, ablation: str) -> None:
        self.twin = MaskedModel(model, task, ablation)
        self.layout = layout_of(model.architecture)
        self._engine = ModelEngine({"model": LoadedModel(fold(model), None, "twin")})
        answers, wrong = (
            tuple((token,) for token in each or ()) for each in (task.answers, task.wrong_answers)
        )
        prompts = PromptTask(task.clean, task.corrupted or (), answers, wrong, task.positions)
        objective = Objective("model", prompts, "kl_divergence", ablation, "group", "fp32")
        self._state = self._engine.open(self._engine.resolve(objective, activations=False))

    def measure(self, *masks: Mask) -> list[MaskFigures]:
        return self._run(MeasureMasks(self.layout, masks))  # type: ignore[return-value]

    def train(self, operation: TrainMasks) -> tuple[Training, tuple[float, ...], dict[NodeKind, float]]:
        found = self._run(operation)
        return found.training, found.kl, dict(found.sizes)  # type: ignore[attr-defined]

    def _run(self, operation: MeasureMasks | TrainMasks) -> object:
        (outcome,) = self._engine.run([Work(self._state, operation)])
        operation.check(outcome)
        return outcome

    def start(self, seed: int) -> Training:
        """Gates on both sides of 0, so that many are closed and many are in between."""
        log_alpha = np.random.default_rng(seed).normal(0.3, 1.5, self.layout.size).astype(np.float32)
        return Training(log_alpha, np.zeros_like(log_alpha), np.zeros_like(log_alpha), 0, 0.7)


def noise(job: Job, seed: int, step: int) -> Tensor:
    """The uniform numbers that the engine draws."""
    return torch.sigmoid(logistic_noise(job.layout.size, seed, step))


def random_mask(job: Job, share: float, seed: int) -> Mask:
    return np.random.default_rng(seed).random(job.layout.size) < share


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_binary_circuits(name: str, ablation: str, zoo: Zoo) -> None:
    task = random_task(zoo[name])
    job = Job(zoo[name], task, ablation)
    masks = [random_mask(job, share, seed) for seed, share in enumerate((1.0, 0.9, 0.5, 0.0))]
    for mask, found in zip(masks, job.measure(*masks), strict=True):
        logits, full = job.twin.logits(as_vector(mask)), job.twin.full
        assert found.kl == pytest.approx(job.twin.kl(as_vector(mask)).item(), abs=1e-9, rel=1e-9)
        assert found.exact_match == (logits.argmax(-1) == full.argmax(-1)).double().mean().item()
        rows, right, wrong = torch.arange(len(logits)), task.answers, task.wrong_answers
        margins = logits[rows, torch.tensor(right)] - logits[rows, torch.tensor(wrong)]
        assert found.logit_difference == pytest.approx(margins.mean().item(), abs=1e-9, rel=1e-9)
        assert found.accuracy == (margins > 0).double().mean().item()
    assert job.measure(masks[0])[0].kl == pytest.approx(0, abs=1e-12)
    assert job.measure(masks[-1])[0].kl > 1e-3


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_training(name: str, ablation: str, zoo: Zoo) -> None:
    """AdamW's first moment after one step is a tenth of the gradient."""
    job = Job(zoo[name], random_task(zoo[name]), ablation)
    weights = {kind: WEIGHTS[kind] for kind in job.layout.kinds}
    start, penalty = job.start(3), Penalty(weights, task_loss=0.3, seed=5)
    after, (kl,), sizes = job.train(TrainMasks(job.layout, start, 1, penalty))
    log_alpha = as_vector(start.log_alpha).requires_grad_()
    loss, expected = job.twin.loss(log_alpha, noise(job, 5, 0), weights, 0.7, task_loss=0.3)
    (gradient,) = torch.autograd.grad(loss, log_alpha)
    assert kl == pytest.approx(expected.item(), rel=1e-9)
    # The numbers between steps are float32.
    torch.testing.assert_close(as_vector(after.first) * 10, gradient, atol=1e-8, rtol=2e-6)
    moved = torch.from_numpy(after.log_alpha != start.log_alpha)
    assert (moved == (gradient.abs() > 0)).double().mean() > 0.99
    for kind, part in job.layout.slices():
        if kind in weights:
            size = expected_size(as_vector(after.log_alpha[part])).sum().item()
            assert sizes[kind] == pytest.approx(size, rel=1e-6)
    assert gradient.abs().max() > 5e-4  # gradients that are all next to nothing test nothing


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_some_steps_with_steering(name: str, zoo: Zoo) -> None:
    """Several steps at once, one after another, and plain AdamW on the twin's gradients go the same way."""
    job = Job(zoo[name], random_task(zoo[name], (5, 3, 6)), "resample")
    weights: dict[NodeKind, float] = {"heads": 0.02, "mlp_hidden": 0.01, "layers": 0.05}
    penalty = Penalty(weights, learning_rate=0.05, weight_decay=0.1, seed=2)
    start, steering, steps = job.start(1), Steering(max_kl=0.3), 6
    whole, divergences, _ = job.train(TrainMasks(job.layout, start, steps, penalty, steering))
    single = start
    for _ in range(steps):
        single, _, _ = job.train(TrainMasks(job.layout, single, 1, penalty, steering))
    for name_of in ("log_alpha", "first", "second"):
        assert getattr(single, name_of).tobytes() == getattr(whole, name_of).tobytes()
    assert (single.step, single.scale, single.average) == (whole.step, whole.scale, whole.average)
    trained = np.zeros(job.layout.size, dtype=bool)
    for kind, part in job.layout.slices():
        trained[part] = kind in weights
    log_alpha = as_vector(start.log_alpha)[trained].requires_grad_()
    optimizer = torch.optim.AdamW([log_alpha], lr=0.05, weight_decay=0.1)
    scale, average = start.scale, None
    for step in range(steps):
        every = as_vector(start.log_alpha)
        every[trained] = log_alpha
        loss, kl = job.twin.loss(every, noise(job, 2, step), weights, scale)
        assert divergences[step] == pytest.approx(kl.item(), rel=1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average = kl.item() if average is None else 0.8 * average + 0.2 * kl.item()
        scale = scale + 0.08 if average < 0.3 else scale * 0.85
    assert whole.scale == pytest.approx(scale)
    found = as_vector(whole.log_alpha)
    torch.testing.assert_close(found[trained], log_alpha.detach(), atol=1e-4, rtol=0)
    assert (whole.log_alpha[~trained] == start.log_alpha[~trained]).all()


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_several_metric_positions(ablation: str, zoo: Zoo) -> None:
    model = zoo["gpt_neo"]
    task = replace(random_task(model, lengths=(9, 5, 7)), positions=(4, 0, 2))
    job = Job(model, task, ablation)
    start, weights = job.start(4), dict.fromkeys(job.layout.kinds, 0.0)
    _, (kl,), _ = job.train(TrainMasks(job.layout, start, 1, Penalty(weights, seed=9)))
    _, expected = job.twin.loss(as_vector(start.log_alpha), noise(job, 9, 0), weights, 0.0)
    assert kl == pytest.approx(expected.item(), rel=1e-9)
    (found,) = job.measure(random_mask(job, 0.6, 0))
    assert found.kl == pytest.approx(job.twin.kl(as_vector(random_mask(job, 0.6, 0))).item(), rel=1e-9)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_a_prompt_does_not_depend_on_its_company(ablation: str, zoo: Zoo) -> None:
    """Under mean ablation it does, by definition."""
    model = zoo["mistral"]
    task = random_task(model, (6, 2, 9))
    together = Job(model, task, ablation)
    mask = random_mask(together, 0.5, 2)
    alone = [Job(model, task.part(slice(n, n + 1)), ablation).measure(mask)[0].kl for n in range(3)]
    found = together.measure(mask)[0].kl
    close = found == pytest.approx(sum(alone) / 3, rel=1e-9)
    assert close is (ablation != "mean")


def test_every_kind_of_gate_counts(zoo: Zoo) -> None:
    """What is compared above depends on all of them."""
    twin = MaskedModel(zoo["gpt2"], random_task(zoo["gpt2"]), "resample")
    gates = random_gates(twin.layout, 0) * 0.5 + 0.25
    for _, part in twin.layout.slices():
        other = gates.clone()
        other[part] = 1
        assert (twin.kl(other) - twin.kl(gates)).abs() > 1e-6
